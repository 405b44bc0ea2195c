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
    // Rust's digits are the shortest that read back, as are Python's; only their layout differs:
    // repr goes to exponents below 1e-4 and from 1e16 on, and writes at least two exponent digits.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a decimal exponent");
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        if plain.contains('.') { plain } else { format!("{plain}.0") }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}

/// What Python writes for a number that serde_json read.
pub(super) fn of_serde(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => of_f64(value),
        _ => number.to_string(),
    }
}
