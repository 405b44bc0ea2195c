//! JSON text in the layout of Python's `json.dumps`.

use super::{Json, Record};

/// What is written of a character outside ASCII.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// `\uXXXX`, a surrogate pair above U+FFFF (`ensure_ascii=True`, the default).
    Ascii,
    /// Itself (`ensure_ascii=False`).
    Utf8,
}

/// Appends `value`.
pub(super) fn value(out: &mut String, value: &Json, charset: Charset) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(text) => out.push_str(text),
        Json::String(text) => string(out, text, charset),
        Json::Array(values) => {
            out.push('[');
            for (at, item) in values.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                self::value(out, item, charset);
            }
            out.push(']');
        }
        Json::Object(fields) => record(out, fields, charset),
    }
}

/// Appends an object.
pub(super) fn record(out: &mut String, fields: &Record, charset: Charset) {
    out.push('{');
    for (at, (key, item)) in fields.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        string(out, key, charset);
        out.push_str(": ");
        value(out, item, charset);
    }
    out.push('}');
}

/// Appends a string in quotes.
fn string(out: &mut String, text: &str, charset: Charset) {
    out.push('"');
    // Runs that need no escape are copied whole: most texts are one run.
    let mut plain_from = 0;
    for (at, char) in text.char_indices() {
        // Python's two patterns: [\x00-\x1f\\"] and, with ensure_ascii, everything outside ' '..'~'.
        let plain = match char {
            '"' | '\\' | '\0'..='\x1f' => false,
            ' '..='~' => true,
            _ => charset == Charset::Utf8,
        };
        if plain {
            continue;
        }
        out.push_str(&text[plain_from..at]);
        plain_from = at + char.len_utf8();
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0c' => out.push_str("\\f"),
            '\x08' => out.push_str("\\b"),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push_str(&text[plain_from..]);
    out.push('"');
}
