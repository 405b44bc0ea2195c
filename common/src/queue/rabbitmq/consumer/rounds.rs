//! Whose queue is taken from next: the models known, in turn.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    super::{error::BrokerError, link::Link, look, registry, topology::Names},
    Wanted,
};
use crate::model::reference::ModelName;

/// How often the namespace is searched for new models.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

/// The models whose queues are visited.
pub(super) struct Rounds {
    /// Whether more of them are searched for.
    all: bool,
    /// The models known, in the order they are visited.
    models: BTreeSet<ModelName>,
    searched: Option<Instant>,
}

impl Rounds {
    pub(super) fn new(wanted: Wanted) -> Rounds {
        let (all, models) = match wanted {
            Wanted::All => (true, BTreeSet::new()),
            Wanted::Models(models) => (false, models.into_iter().collect()),
        };
        Rounds { all, models, searched: None }
    }

    /// Learns which models there are.
    pub(super) async fn search(&mut self, link: &Link, names: &Names) -> Result<(), BrokerError> {
        if !self.all || self.searched.is_some_and(|at| at.elapsed() < SEARCH_EVERY) {
            return Ok(());
        }
        let found = registry::read(link, names).await?;
        self.models = found.into_iter().filter_map(|run| ModelName::try_from(run.model.name).ok()).collect();
        self.searched = Some(Instant::now());
        Ok(())
    }

    /// The first model of all.
    pub(super) fn first(&self) -> Option<&ModelName> {
        self.models.first()
    }

    /// The first model after `current`, the one being taken from, in turn, whose queue has jobs.
    pub(super) async fn with_work(
        &self,
        link: &Link,
        names: &Names,
        current: Option<&ModelName>,
    ) -> Result<Option<&ModelName>, BrokerError> {
        let after = self.models.iter().filter(|&model| current.is_none_or(|current| model > current));
        let before = self.models.iter().filter(|&model| current.is_some_and(|current| model < current));
        for model in after.chain(before) {
            if look::counts(link, &names.queue(model)).await?.is_some_and(|counts| counts.ready > 0) {
                return Ok(Some(model));
            }
        }
        Ok(None)
    }
}
