//! Which layers a user asked for: `--layers 0,3-5` and `--names-filter REGEX`, resolved against a model.

use std::{collections::BTreeSet, str::FromStr};

use regex::Regex;

use crate::capture::Layers;

/// A list of layer numbers and ranges as typed: `0,3-5`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerList(BTreeSet<usize>);

/// What a user asked for, before a model is known.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// From `--layers`.
    pub layers: Option<LayerList>,
    /// From `--names-filter`: kept are the layers whose hook name it matches anywhere, as upstream's filter does.
    pub names: Option<Regex>,
}

/// A selection that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Not a list of layers.
    #[error(
        "--layers: {0:?} is no list of layers: write numbers and ranges from 0, separated by commas, as in 0,3-5"
    )]
    List(String),
    /// A layer past the model's last.
    #[error("layer {layer} was asked for, but {model} has layers 0 to {last}")]
    NoSuchLayer {
        /// The layer.
        layer: usize,
        /// The model.
        model: String,
        /// Its last layer.
        last: usize,
    },
    /// Nothing matches.
    #[error(
        "the names filter {filter:?} matches no attention pattern of {model}; lenspool captures attention patterns only, \
         named blocks.0.attn.hook_pattern to blocks.{last}.attn.hook_pattern"
    )]
    NoPattern {
        /// The expression.
        filter: String,
        /// The model.
        model: String,
        /// Its last layer.
        last: usize,
    },
    /// Both filters together leave nothing.
    #[error("--layers and --names-filter together leave no layer of {model}")]
    Disjoint {
        /// The model.
        model: String,
    },
}

/// The name pattern_lens and TransformerLens give a layer's attention pattern.
pub fn hook_name(layer: usize) -> String {
    format!("blocks.{layer}.attn.hook_pattern")
}

impl FromStr for LayerList {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let wrong = || SelectionError::List(text.to_owned());
        let mut layers = BTreeSet::new();
        for item in text.split(',').map(str::trim) {
            let number = |t: &str| t.trim().parse::<usize>().ok().filter(|&n| n < 10_000).ok_or_else(wrong);
            match item.split_once('-') {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(wrong());
                    }
                    layers.extend(first..=last);
                }
                None => drop(layers.insert(number(item)?)),
            }
        }
        Ok(LayerList(layers))
    }
}

impl Selection {
    /// The selection for `model` with `n_layers` layers.
    pub fn resolve(&self, model: &str, n_layers: usize) -> Result<Layers, SelectionError> {
        let last = n_layers.saturating_sub(1);
        if let Some(layer) =
            self.layers.as_ref().and_then(|list| list.0.last().copied().filter(|&layer| layer > last))
        {
            return Err(SelectionError::NoSuchLayer { layer, model: model.to_owned(), last });
        }
        let named =
            |layer: &usize| self.names.as_ref().is_none_or(|names| names.is_match(&hook_name(*layer)));
        let listed = |layer: &usize| self.layers.as_ref().is_none_or(|list| list.0.contains(layer));
        if let Some(names) = &self.names
            && !(0..n_layers).any(|layer| named(&layer))
        {
            return Err(SelectionError::NoPattern {
                filter: names.as_str().to_owned(),
                model: model.to_owned(),
                last,
            });
        }
        let chosen: BTreeSet<_> = (0..n_layers).filter(|layer| listed(layer) && named(layer)).collect();
        match chosen.len() {
            0 => Err(SelectionError::Disjoint { model: model.to_owned() }),
            all if all == n_layers => Ok(Layers::All),
            _ => Ok(Layers::Only(chosen)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(layers: &[usize]) -> Layers {
        Layers::Only(layers.iter().copied().collect())
    }

    fn select(layers: Option<&str>, names: Option<&str>) -> Result<Layers, SelectionError> {
        let layers = layers.map(str::parse).transpose()?;
        let names = names.map(|n| Regex::new(n).unwrap());
        Selection { layers, names }.resolve("gpt2", 12)
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(select(Some("0,3-5"), None), Ok(only(&[0, 3, 4, 5])));
        assert_eq!(select(Some(" 7 "), None), Ok(only(&[7])));
        assert_eq!(select(Some("0-11"), None), Ok(Layers::All));
        assert_eq!(select(None, None), Ok(Layers::All));
        for bad in ["", "a", "1,", "5-3", "-1", "1-2-3", "99999999999999999999"] {
            assert_eq!(bad.parse::<LayerList>(), Err(SelectionError::List(bad.into())), "{bad:?}");
        }
        let error = select(Some("12"), None).unwrap_err().to_string();
        assert_eq!(error, "layer 12 was asked for, but gpt2 has layers 0 to 11");
    }

    #[test]
    fn names_filters_are_expressions_over_hook_names() {
        assert_eq!(select(None, Some(r"blocks\.[02]\.attn")), Ok(only(&[0, 2])));
        assert_eq!(select(None, Some("hook_pattern")), Ok(Layers::All));
        assert_eq!(select(Some("0-3"), Some(r"blocks\.3\.")), Ok(only(&[3])));
        let error = select(None, Some("hook_resid_pre")).unwrap_err().to_string();
        assert!(error.contains("captures attention patterns only"), "{error}");
        assert!(matches!(select(Some("0"), Some(r"blocks\.3\.")), Err(SelectionError::Disjoint { .. })));
    }
}
