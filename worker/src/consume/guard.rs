//! Which jobs this worker runs: a message must not make it write where nobody with rights there wanted it to.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    job::{FailureKind, Job, RunId},
    model::reference::ModelName,
    store::{
        layout::{ModelLayout, SaveLayout},
        runs::{self, RunCard},
    },
};

use crate::serve::{Admission, CommitError};

/// Whose jobs are accepted.
///
/// A job names its data directory. It is accepted where its run was announced there, in a file that only somebody
/// who may write there can have made; and, where directories are allowed by name, only under these.
#[derive(Debug, Default)]
pub struct Guard {
    allowed: Vec<PathBuf>,
    /// What was announced, as far as it was asked for: it does not change.
    announced: Mutex<HashMap<(PathBuf, RunId, String), Arc<RunCard>>>,
}

impl Guard {
    /// Accepts jobs under `allowed` only; everywhere, where that is empty. Directories that are not there yet are
    /// taken as they are written.
    pub fn new(allowed: &[PathBuf]) -> std::io::Result<Guard> {
        let resolved = |path: &PathBuf| match fs::canonicalize(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::path::absolute(path),
            resolved => resolved,
        };
        Ok(Guard { allowed: allowed.iter().map(resolved).collect::<Result<_, _>>()?, ..Guard::default() })
    }

    /// Whether `job` is to be run here.
    pub fn admit(&self, job: &Job) -> Result<Admission, CommitError> {
        let save_path = &job.save_path;
        let refuse = |kind, reason: String| CommitError { kind, reason };
        let name = ModelName::try_from(job.model.name.clone())
            .map_err(|error| refuse(FailureKind::Permanent, error.to_string()))?;
        let real = fs::canonicalize(save_path).map_err(|error| {
            let shown = save_path.display();
            refuse(
                FailureKind::Retryable,
                format!("this machine does not see the data directory {shown}: {error}; mount it where workers run"),
            )
        })?;
        if !self.allowed.is_empty() && !self.allowed.iter().any(|allowed| real.starts_with(allowed)) {
            // Another worker may be allowed to; this one's settings must not end a job for good at once.
            return Err(refuse(
                FailureKind::Retryable,
                format!(
                    "this worker may not write to {}; start workers with --allow-save-path for it",
                    real.display()
                ),
            ));
        }
        let model = SaveLayout::new(save_path).model(&name);
        self.check_announced(&model, save_path, job)?;
        match runs::is_cancelled(&model, &job.run) {
            Ok(true) => Ok(Admission::Cancelled),
            Ok(false) => Ok(Admission::Welcome),
            Err(error) => Err(error.into()),
        }
    }

    fn check_announced(&self, model: &ModelLayout, save_path: &Path, job: &Job) -> Result<(), CommitError> {
        let key = (save_path.to_owned(), job.run.clone(), job.model.name.clone());
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let card = match announced.get(&key) {
            Some(card) => Some(Arc::clone(card)),
            None => runs::card(model, &job.run)?.map(Arc::new),
        };
        let Some(card) = card else {
            // It may only be this machine that does not see it yet.
            return Err(CommitError {
                kind: FailureKind::Retryable,
                reason: format!(
                    "run {} was not announced in {}: there is no {}; jobs are made by `dispatcher enqueue`",
                    job.run,
                    save_path.display(),
                    model.run(&job.run).display()
                ),
            });
        };
        let same = card.model == job.model
            && card.shape == job.shape
            && card.capture == job.capture
            && card.force == job.force;
        announced.insert(key, card);
        if same {
            return Ok(());
        }
        Err(CommitError {
            kind: FailureKind::Permanent,
            reason: format!(
                "the job is not what run {} announced in {}: another model, other layers or another way to keep them",
                job.run,
                save_path.display()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use common::{
        capture::Capture,
        job::{JobPrompt, ModelPin, ModelShape},
        prompt::{PromptHash, Record},
        store::{
            WriterId,
            runs::{LEDGER_VERSION, RunCard, RunLedger},
        },
    };

    use super::*;

    fn job(save_path: &Path, run: &str) -> Job {
        let model = ModelPin { name: "m".into(), source: "m".into(), commit: "0".into() };
        let prompt = JobPrompt { hash: PromptHash::of("a"), record: Record::new(), ids: vec![1] };
        let shape = ModelShape { n_layers: 1, n_heads: 1 };
        let run = RunId(run.to_owned());
        Job::new(run, model, shape, Capture::default(), save_path.to_owned(), false, vec![prompt])
    }

    fn announce(job: &Job) -> ModelLayout {
        let model = SaveLayout::new(&job.save_path).model(&ModelName::try_from("m").unwrap());
        let card = RunCard {
            version: LEDGER_VERSION,
            run: job.run.clone(),
            namespace: "n".into(),
            model: job.model.clone(),
            shape: job.shape,
            capture: job.capture.clone(),
            force: false,
            request: "r".into(),
            prompts: 1,
            cached: 0,
            todo: 1,
            at: jiff::Timestamp::UNIX_EPOCH,
            writer: WriterId::this_process(&job.run).to_string(),
        };
        drop(RunLedger::announce(&model, &card).unwrap());
        model
    }

    fn refused(guard: &Guard, job: &Job) -> (FailureKind, String) {
        let error = guard.admit(job).unwrap_err();
        (error.kind, error.reason)
    }

    #[test]
    fn a_job_is_welcome_where_its_run_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        let guard = Guard::new(&[]).unwrap();
        let job = job(dir.path(), "run");
        let (kind, reason) = refused(&guard, &job);
        assert!(kind == FailureKind::Retryable && reason.contains("was not announced"), "{reason}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written for a stranger");
        let model = announce(&job);
        assert_eq!(guard.admit(&job).unwrap(), Admission::Welcome);
        for changed in [Job { force: true, ..job.clone() }, {
            let model = ModelPin { commit: "1".into(), ..job.model.clone() };
            Job { model, ..job.clone() }
        }] {
            let (kind, reason) = refused(&guard, &changed);
            assert!(kind == FailureKind::Permanent && reason.contains("is not what run"), "{reason}");
        }
        runs::cancel_run(&model, &job.run).unwrap();
        assert_eq!(guard.admit(&job).unwrap(), Admission::Cancelled);
    }

    #[test]
    fn what_is_not_allowed_is_refused_even_through_a_link() {
        let (allowed, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let guard = Guard::new(&[allowed.path().to_owned()]).unwrap();
        let link = allowed.path().join("link");
        std::os::unix::fs::symlink(other.path(), &link).unwrap();
        for path in [other.path().to_owned(), link] {
            let job = job(&path, "run");
            announce(&job);
            let (kind, reason) = refused(&guard, &job);
            assert!(kind == FailureKind::Retryable && reason.contains("may not write"), "{reason}");
            fs::remove_dir_all(path.join(".lenspool")).unwrap();
        }
        let inside = allowed.path().join("data");
        fs::create_dir(&inside).unwrap();
        let job = job(&inside, "run");
        announce(&job);
        assert_eq!(guard.admit(&job).unwrap(), Admission::Welcome);
    }

    #[test]
    fn a_path_that_is_not_there_may_be_there_elsewhere() {
        let guard = Guard::new(&[]).unwrap();
        let (kind, reason) = refused(&guard, &job(Path::new("/nowhere/at/all"), "run"));
        assert!(kind == FailureKind::Retryable && reason.contains("/nowhere/at/all"), "{reason}");
    }
}
