//! The text Python writes for a number, given the text of one or its value.

/// Python refuses to read longer integers (`sys.int_info.default_max_str_digits`), so writing one
/// would make the whole prompts.jsonl unreadable there.
pub(super) const MAX_INT_DIGITS: usize = 4300;

/// What `json.dumps(json.loads(text))` gives for a valid integer text.
pub(super) fn of_int_text(text: &str) -> &str {
    if text == "-0" { "0" } else { text }
}

/// What `json.dumps(json.loads(text))` gives for a valid text with a fraction or an exponent.
pub(super) fn of_float_text(text: &str) -> String {
    of_f64(text.parse().expect("the parser checked that this is a number"))
}

/// What `json.dumps(value)` gives for a float: `repr`, with Python's own words for what JSON lacks.
pub(super) fn of_f64(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // serde_json's digits are Python's: the shortest that read back, the nearer of two, the even one
    // of two as near (where Rust's own formatting takes the other). Only the layout differs: repr goes
    // to exponents below 1e-4 and from 1e16 on, and writes at least two exponent digits.
    let shortest = serde_json::Number::from_f64(value).expect("the value is finite").to_string();
    let (sign, shortest) = match shortest.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", &shortest[..]),
    };
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let leading_zeros = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0');
    if digits.is_empty() {
        return format!("{sign}0.0");
    }
    // The value is 0.digits times ten to the power of `point`.
    let point =
        exponent.parse::<i32>().expect("an exponent is a number") + whole.len() as i32 - leading_zeros as i32;
    let count = digits.len() as i32;
    match point {
        -3..=0 => format!("{sign}0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
        1..=16 if count > point => {
            format!("{sign}{}.{}", &digits[..point as usize], &digits[point as usize..])
        }
        1..=16 => format!("{sign}{digits}{}.0", "0".repeat((point - count) as usize)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            let power = point - 1;
            let power_sign = if power < 0 { '-' } else { '+' };
            format!("{sign}{first}{dot}{rest}e{power_sign}{:02}", power.abs())
        }
    }
}

/// What Python writes for a number that serde_json read.
pub(super) fn of_serde(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => of_f64(value),
        _ => number.to_string(),
    }
}
