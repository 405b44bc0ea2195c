//! A length of time as people write it: `90s`, `2m`, `1h 30m`, or a bare number of seconds.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let text = text.trim();
        match text.parse() {
            Ok(seconds) => Ok(Span::seconds(seconds)),
            Err(_) => humantime::parse_duration(text)
                .map(Span)
                .map_err(|error| format!("{text:?} is no length of time as in 90s, 2m or 1h: {error}")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a length of time, as in \"90s\", \"2m\" or a number of seconds")]
        enum Written {
            Seconds(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Seconds(seconds) => Ok(Span::seconds(seconds)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_machines_write_it() {
        for (text, seconds, shown) in
            [("90", 90, "1m 30s"), ("90s", 90, "1m 30s"), (" 2m ", 120, "2m"), ("1h 5s", 3605, "1h 5s")]
        {
            let span: Span = text.parse().unwrap();
            assert_eq!((span, span.to_string().as_str()), (Span::seconds(seconds), shown));
            let json = serde_json::to_string(&span).unwrap();
            assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), span);
        }
        assert_eq!(serde_json::from_str::<Span>("30").unwrap(), Span::seconds(30));
        assert!("soon".parse::<Span>().unwrap_err().contains("90s"));
        assert!("-3s".parse::<Span>().is_err());
    }
}
