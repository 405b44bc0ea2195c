//! Values that may be used but never shown: secrets, and addresses with secrets in them.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

/// What stands in a secret's place wherever it would be shown.
pub const REDACTED: &str = "[hidden]";

/// A token or password. Debug, Display and Serialize show that it is set, never what it is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// The secret itself, for the one place that has to send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Secret {
        Secret::new(value)
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(value: &str) -> Result<Secret, Infallible> {
        Ok(Secret::new(value))
    }
}

/// A broker's address, or several with commas, whose passwords are not shown. It is not checked here.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct BrokerUrl(String);

impl BrokerUrl {
    /// Wraps an address.
    pub fn new(url: impl Into<String>) -> BrokerUrl {
        BrokerUrl(url.into())
    }

    /// The address with its password, for the one place that connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The single addresses.
    pub fn nodes(&self) -> Vec<BrokerUrl> {
        // A comma may be part of a password; a scheme behind it means a further address.
        let mut nodes: Vec<String> = Vec::new();
        for part in self.0.split(',') {
            match nodes.last_mut() {
                Some(last) if !part.trim_start().starts_with("amqp") => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => nodes.push(part.to_owned()),
            }
        }
        nodes.into_iter().map(BrokerUrl).collect()
    }

    /// Whether it holds a password.
    pub fn holds_password(&self) -> bool {
        self.shown() != self.0
    }

    /// The address without its passwords. Whatever could be part of one is taken for it.
    fn shown(&self) -> String {
        let nodes = self.nodes();
        let shown = nodes.iter().map(|BrokerUrl(node)| {
            let Some((scheme, rest)) = node.split_once("://") else { return REDACTED.to_owned() };
            match rest.rsplit_once('@') {
                None => node.clone(),
                Some((login, place)) => match login.split_once(':') {
                    None => node.clone(),
                    Some((user, _)) => format!("{scheme}://{user}:{REDACTED}@{place}"),
                },
            }
        });
        shown.collect::<Vec<_>>().join(",")
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for BrokerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret: Secret = serde_json::from_str("\"hf_abc\"").unwrap();
        assert_eq!(secret.reveal(), "hf_abc");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[hidden] [hidden] Some([hidden])");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[hidden]\"");
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("amqp://localhost:5672/%2f", "amqp://localhost:5672/%2f"),
            ("amqps://me@host", "amqps://me@host"),
            ("amqps://me:pw@host:5671/v", "amqps://me:[hidden]@host:5671/v"),
            ("amqp://me:p@ss/w:rd@host", "amqp://me:[hidden]@host"),
            ("amqp://me:a,b@host", "amqp://me:[hidden]@host"),
            ("amqp://a:1@x,amqp://b:2@y", "amqp://a:[hidden]@x,amqp://b:[hidden]@y"),
            ("me:pw@host", "[hidden]"),
            ("", "[hidden]"),
        ] {
            let broker = BrokerUrl::new(url);
            assert_eq!(broker.to_string(), shown);
            assert_eq!(format!("{broker:?}"), shown);
            assert_eq!(serde_json::to_value(&broker).unwrap(), shown);
            assert_eq!(broker.reveal(), url);
            assert_eq!(broker.holds_password(), shown != url);
        }
    }
}
