//! Reads one JSON text as Python's `json.loads` does, with the column of what is wrong.
//!
//! Stricter than Python in three places, each because what would be written could not be read back
//! or hashed: lone surrogates, integers of more than 4300 digits, nesting deeper than [`MAX_DEPTH`].

use std::collections::HashMap;

use super::{Json, Record, number};

/// Arrays and objects may nest this deep; Python itself gives up near 1000.
pub const MAX_DEPTH: usize = 256;

/// From this many keys on an object's duplicates are found through a map.
const MANY_KEYS: usize = 24;

/// What is wrong with a JSON text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct JsonError {
    /// Column in code points, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// An object with the place of each of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRecord {
    /// The object.
    pub record: Record,
    /// Byte offset of each value, in key order.
    offsets: Vec<usize>,
}

impl ParsedRecord {
    /// The column, in code points from 1, at which the value of `key` begins in `line`; 1 where there is no such key.
    pub fn column_of(&self, key: &str, line: &str) -> usize {
        let at = self.record.iter().position(|(name, _)| name == key);
        at.map_or(1, |at| column(line, self.offsets[at]))
    }
}

/// Reads an object from one line of text.
pub fn parse_record(line: &str) -> Result<ParsedRecord, JsonError> {
    parse_to_depth(line, MAX_DEPTH)
}

/// As [`parse_record`], for what was read once already and may have been wrapped since.
pub(super) fn parse_again(line: &str) -> Result<ParsedRecord, JsonError> {
    parse_to_depth(line, MAX_DEPTH + 8)
}

fn parse_to_depth(line: &str, max_depth: usize) -> Result<ParsedRecord, JsonError> {
    let mut parser = Parser { text: line, at: 0, depth: 0, max_depth };
    parser.skip_space();
    let start = parser.at;
    let parsed = match parser.peek() {
        Some(b'{') => parser.object()?,
        _ => {
            return Err(match parser.value() {
                Ok(value) => {
                    parser.error(start, format!("expected an object {{...}}, found {}", value.kind()))
                }
                Err(_) => Parser { at: start, ..parser }.expected("an object {...}"),
            });
        }
    };
    parser.skip_space();
    match parser.rest().chars().next() {
        None => Ok(parsed),
        Some(found) => {
            let at = parser.at;
            Err(parser.error(at, format!("one object a line, but {found:?} follows it")))
        }
    }
}

fn column(text: &str, offset: usize) -> usize {
    text[..offset].chars().count() + 1
}

struct Parser<'t> {
    text: &'t str,
    /// Byte offset, always on a character boundary.
    at: usize,
    depth: usize,
    max_depth: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn error(&self, at: usize, message: impl Into<String>) -> JsonError {
        JsonError { column: column(self.text, at), message: message.into() }
    }

    /// "expected this, found that", at the place reached.
    fn expected(&self, what: &str) -> JsonError {
        match self.rest().chars().next() {
            Some(found) => self.error(self.at, format!("expected {what}, found {found:?}")),
            None => self.error(self.at, format!("expected {what}, but the line ends here")),
        }
    }

    fn value(&mut self) -> Result<Json, JsonError> {
        match self.peek() {
            Some(b'{') => self.object().map(|parsed| Json::Object(parsed.record)),
            Some(b'[') => self.array(),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [
                    ("null", Json::Null),
                    ("true", Json::Bool(true)),
                    ("false", Json::Bool(false)),
                    ("NaN", Json::Number("NaN".into())),
                    ("Infinity", Json::Number("Infinity".into())),
                ] {
                    if self.rest().starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.expected("a value"))
            }
        }
    }

    fn enter(&mut self) -> Result<(), JsonError> {
        if self.depth == self.max_depth {
            return Err(self.error(self.at, format!("nested deeper than {} levels", self.max_depth)));
        }
        self.depth += 1;
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    fn array(&mut self) -> Result<Json, JsonError> {
        self.enter()?;
        let mut values = Vec::new();
        if self.peek() != Some(b']') {
            loop {
                values.push(self.value()?);
                self.skip_space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break,
                    _ => return Err(self.expected("',' or ']'")),
                }
                self.skip_space();
            }
        }
        self.at += 1;
        self.depth -= 1;
        Ok(Json::Array(values))
    }

    fn object(&mut self) -> Result<ParsedRecord, JsonError> {
        self.enter()?;
        let mut fields: Vec<(String, Json)> = Vec::new();
        let mut offsets = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        if self.peek() != Some(b'}') {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.expected("a key in double quotes"));
                }
                let key = self.string()?;
                self.skip_space();
                if self.peek() != Some(b':') {
                    return Err(self.expected("':' after the key"));
                }
                self.at += 1;
                self.skip_space();
                let offset = self.at;
                let value = self.value()?;
                // As in a Python dict, a repeated key keeps its first place and its last value.
                let known = if fields.len() < MANY_KEYS {
                    fields.iter().position(|(name, _)| *name == key)
                } else {
                    if places.is_empty() {
                        places.extend(fields.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)));
                    }
                    places.get(&key).copied()
                };
                match known {
                    Some(at) => (fields[at].1, offsets[at]) = (value, offset),
                    None => {
                        if !places.is_empty() {
                            places.insert(key.clone(), fields.len());
                        }
                        fields.push((key, value));
                        offsets.push(offset);
                    }
                }
                self.skip_space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => break,
                    _ => return Err(self.expected("',' or '}'")),
                }
                self.skip_space();
            }
        }
        self.at += 1;
        self.depth -= 1;
        Ok(ParsedRecord { record: Record(fields), offsets })
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.rest().starts_with("Infinity") {
                self.at += "Infinity".len();
                return Ok(Json::Number("-Infinity".into()));
            }
        }
        let digits_from = self.at;
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.expected("a digit")),
        }
        let int_digits = self.at - digits_from;
        let is_float = self.fraction() | self.exponent();
        let text = &self.text[start..self.at];
        if is_float {
            return Ok(Json::Number(number::of_float_text(text).into()));
        }
        if int_digits > number::MAX_INT_DIGITS {
            let limit = number::MAX_INT_DIGITS;
            return Err(
                self.error(start, format!("an integer of {int_digits} digits; Python reads {limit} at most"))
            );
        }
        Ok(Json::Number(number::of_int_text(text).into()))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    /// Takes `.digits` if it is there; a dot without digits is left for the caller to stumble on.
    fn fraction(&mut self) -> bool {
        let rest = self.rest().as_bytes();
        let found = rest.first() == Some(&b'.') && rest.get(1).is_some_and(u8::is_ascii_digit);
        if found {
            self.at += 1;
            self.digits();
        }
        found
    }

    /// Takes `e±digits` if it is there.
    fn exponent(&mut self) -> bool {
        let rest = self.rest().as_bytes();
        if !matches!(rest.first(), Some(b'e' | b'E')) {
            return false;
        }
        let sign = usize::from(matches!(rest.get(1), Some(b'+' | b'-')));
        let found = rest.get(1 + sign).is_some_and(u8::is_ascii_digit);
        if found {
            self.at += 1 + sign;
            self.digits();
        }
        found
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let run = self.rest();
            let plain = run.bytes().position(|byte| byte == b'"' || byte == b'\\' || byte < 0x20);
            let Some(plain) = plain else {
                return Err(self.error(start, "this string has no closing quote"));
            };
            out.push_str(&run[..plain]);
            self.at += plain;
            match run.as_bytes()[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => out.push(self.escape()?),
                control => {
                    let message =
                        format!("a raw control character in a string; write it as \\u{control:04x}");
                    return Err(self.error(self.at, message));
                }
            }
        }
    }

    /// Reads the escape at the place reached, both halves where it is a surrogate pair.
    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        let char = match self.text.as_bytes().get(start + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.error(start, "not an escape JSON knows (a backslash itself is \\\\)")),
        };
        self.at += 2;
        Ok(char)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        let first = self.unit(start)?;
        self.at += 6;
        if let Some(char) = char::from_u32(first.into()) {
            return Ok(char);
        }
        let second =
            if first < 0xdc00 && self.rest().starts_with("\\u") { self.unit(self.at).ok() } else { None };
        match second {
            Some(second @ 0xdc00..=0xdfff) => {
                self.at += 6;
                let code = 0x10000 + ((u32::from(first) - 0xd800) << 10) + (u32::from(second) - 0xdc00);
                Ok(char::from_u32(code).expect("a surrogate pair is a character"))
            }
            _ => Err(self.error(start, format!("\\u{first:04x} is half a surrogate pair, which is no text"))),
        }
    }

    /// The code unit of the `\uXXXX` at `start`.
    fn unit(&self, start: usize) -> Result<u16, JsonError> {
        let digits = self.text.as_bytes().get(start + 2..start + 6).unwrap_or_default();
        let hex = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        hex.and_then(|text| u16::from_str_radix(text, 16).ok())
            .ok_or_else(|| self.error(start, "\\u needs four hexadecimal digits after it"))
    }
}
