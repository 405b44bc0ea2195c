//! The commands that only tell: `worker config` and `worker models`.

use std::{collections::HashSet, fmt::Display};

use common::{
    exit::Exit,
    job::FailureKind,
    model::{
        alias::known_models,
        family,
        locate::{LocateError, check_weights, locate_config},
        reference::ModelRef,
        spec::Family,
    },
    settings::{Loaded, Settings},
    talk::say,
};
use serde_json::json;

/// Prints every setting with where it came from.
pub fn config(loaded: &Loaded, json: bool) -> Exit {
    if json {
        say(format_args!("{:#}\n", loaded.json()));
    } else {
        say(format_args!("{}", loaded.table()));
    }
    Exit::Done
}

/// Lists the families and aliases, or says whether `model` is supported.
pub fn models(model: Option<&str>, settings: &Settings, json: bool) -> Exit {
    match model {
        Some(model) => one(model, settings, json),
        None => {
            list(json);
            Exit::Done
        }
    }
}

fn list(json: bool) {
    if json {
        let families: Vec<_> = Family::ALL
            .iter()
            .map(|family| json!({"model_type": family.model_type(), "title": family.title()}))
            .collect();
        let models: Vec<_> = known_models()
            .iter()
            .map(|known| json!({"repo": known.repo, "alias": known.alias, "spellings": known.spellings}))
            .collect();
        say(format_args!("{:#}\n", json!({"families": families, "models": models})));
        return;
    }
    say(format_args!("families (model_type in config.json):\n"));
    for family in Family::ALL {
        say(format_args!("  {:12} {}\n", family.model_type(), family.title()));
    }
    say(format_args!(
        "\nmodels known by name (any other repository or directory of these families works too):\n"
    ));
    for known in known_models() {
        // Capitals make no difference to what may be typed.
        let mut told = HashSet::from([known.repo.to_lowercase()]);
        let spellings: Vec<_> =
            known.all_spellings().filter(|spelling| told.insert(spelling.to_lowercase())).collect();
        say(format_args!("  {:44} {}\n", known.repo, spellings.join(", ")));
    }
}

/// Says whether one model can be run: finds it, reads its config, looks whether there are weights.
fn one(model: &str, settings: &Settings, json: bool) -> Exit {
    let hub = settings.hub.options();
    let told = (|| {
        let no = |error: &dyn Display| (error.to_string(), Exit::Configuration, Some(false));
        let reference = ModelRef::parse(model, settings.hub.revision.as_deref()).map_err(|e| no(&e))?;
        let not_found = |error: LocateError| {
            // Of what is not here, and cannot be fetched now, there is no telling.
            let passes = error.kind() == FailureKind::Retryable;
            let unknown = passes || matches!(error, LocateError::NotCached { .. });
            (error.to_string(), error.kind().into(), if unknown { None } else { Some(false) })
        };
        let located = locate_config(&reference, &hub, &mut |_| {}).map_err(not_found)?;
        let spec = family::read_spec(&located.dir.join("config.json")).map_err(|e| no(&e))?;
        check_weights(&located, &hub).map_err(not_found)?;
        Ok::<_, (String, Exit, Option<bool>)>((located, spec))
    })();
    match told {
        Ok((located, spec)) => {
            if json {
                say(format_args!(
                    "{:#}\n",
                    json!({"model": model, "supported": true, "source": located.source, "commit": located.commit,
                        "directory": located.name.as_str(), "family": spec.family.model_type(),
                        "n_layers": spec.n_layers(), "n_heads": spec.n_heads, "n_ctx": spec.n_ctx})
                ));
            } else {
                say(format_args!(
                    "{model} is supported: {} at {}, {}, {} layers, {} heads, n_ctx {}; its files go to {}/\n",
                    located.source,
                    located.commit,
                    spec.family.title(),
                    spec.n_layers(),
                    spec.n_heads,
                    spec.n_ctx,
                    located.name
                ));
            }
            Exit::Done
        }
        Err((reason, exit, supported)) => {
            if json {
                say(format_args!(
                    "{:#}\n",
                    json!({"model": model, "supported": supported, "reason": reason})
                ));
            } else {
                say(format_args!("{model} cannot be run: {reason}\n"));
            }
            exit
        }
    }
}
