//! The store: a data directory that pattern_lens's readers understand, written so that a file under
//! its final name is always whole.
//!
//! | room | owns |
//! |---|---|
//! | [`layout`] | where every file lies, computed in one place |
//! | [`writer`] | who writes: the identity in temporary names, and whether its process still lives |
//! | [`commit`] | one prompt's files, whole or not at all: temporary name, fsync, rename, fsync |
//! | [`cached`] | which prompts are committed already |
//! | [`held`] | what one activations.npz holds, and its entries to keep when it is rewritten |
//! | [`index`] | models.jsonl, prompts.jsonl, figures.jsonl |
//! | `shared` | replacing a file that many replace, losing no one's lines |
//! | [`journal`] | what each writer did, an event a line; a run's progress |
//! | [`runs`] | what was enqueued, called off, indexed |
//! | `intents` | where a writer may leave temporary files, said beforehand |
//! | [`sweep`] | removing what dead runs left behind |
//! | [`error`] | what failed, where, and whether another try can help |
//!
//! It deliberately knows nothing of models, tokens or patterns: bytes come in, files come out. There
//! are no file locks (they cannot be trusted on NFS); everything shared is replaced by rename.

pub mod cached;
pub mod commit;
mod durable;
pub mod error;
pub mod held;
pub mod index;
mod intents;
pub mod journal;
pub mod layout;
pub mod runs;
mod shared;
pub mod sweep;
pub mod writer;

pub use cached::CacheCheck;
pub use commit::{Committed, ModelStore, Store};
pub use error::{Op, StoreError};
pub use held::entries_to_keep;
pub use index::{IndexReport, Unlisted};
pub use intents::Announcement;
pub use journal::{Event, Failed, Journal, JournalReader, Progress};
pub use layout::{ModelLayout, ModelName, SaveLayout};
pub use sweep::Swept;
pub use writer::WriterId;
