//! The types a config key can have, and how each is read from JSON.

use serde_json::{Map, Value};

use crate::model::spec::Activation;

/// Types a config key can have.
pub(super) trait FromValue: Sized {
    /// What a user may write.
    const EXPECTED: &'static str;
    /// The value, if it is one.
    fn from_value(value: &Value) -> Option<Self>;
    /// What an absent key means where nothing else is said.
    fn absent() -> Option<Self> {
        None
    }
}

impl FromValue for usize {
    const EXPECTED: &'static str = "a whole number, not negative";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_u64().and_then(|number| usize::try_from(number).ok())
    }
}

impl FromValue for f64 {
    const EXPECTED: &'static str = "a number";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl FromValue for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromValue for String {
    const EXPECTED: &'static str = "a string";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl FromValue for Map<String, Value> {
    const EXPECTED: &'static str = "an object";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }
}

impl FromValue for Value {
    const EXPECTED: &'static str = "anything";
    fn from_value(value: &Value) -> Option<Self> {
        Some(value.clone())
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    const EXPECTED: &'static str = "a list";
    fn from_value(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_value).collect()
    }
}

impl<T: FromValue> FromValue for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_value(value: &Value) -> Option<Self> {
        if value.is_null() { Some(None) } else { T::from_value(value).map(Some) }
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// An MLP nonlinearity as Hugging Face names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ActivationName {
    /// The name in the file.
    pub(super) name: String,
    /// What it computes.
    pub(super) activation: Activation,
}

impl ActivationName {
    /// A default.
    pub(super) fn known(name: &str) -> Self {
        Self::from_value(&Value::from(name)).expect("defaults are known names")
    }
}

impl FromValue for ActivationName {
    const EXPECTED: &'static str = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, swish";
    fn from_value(value: &Value) -> Option<Self> {
        let name = value.as_str()?;
        let activation = match name {
            "gelu" => Activation::GeluErf,
            // gelu_fast writes sqrt(2/pi) with ten digits: the same in f32.
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            _ => return None,
        };
        Some(ActivationName { name: name.to_owned(), activation })
    }
}
