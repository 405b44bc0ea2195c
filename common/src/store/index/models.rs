//! models.jsonl: one model_cfg object a line, with "sanitized_name", in order of the directory names.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
};

use super::IndexReport;
use crate::{
    prompt::{Json, Record},
    store::{
        commit::Store,
        error::{Context, Op, StoreError},
        layout::ModelName,
        shared::{self, Replaced},
    },
};

pub(super) fn update(store: &Store) -> Result<IndexReport, StoreError> {
    let target = store.layout().models_jsonl();
    let mut report = IndexReport::default();
    shared::replace(store, &target, |base, out| {
        report = IndexReport::default();
        let text = lines(store, &mut report)?;
        if let Some(mut file) = base.file() {
            let mut there = Vec::new();
            file.read_to_end(&mut there).on(Op::Read, &target)?;
            if there == text.as_bytes() {
                return Ok(Replaced::Unneeded);
            }
        }
        out.write_all(text.as_bytes()).on(Op::Write, &target)?;
        Ok(Replaced::Yes)
    })?;
    Ok(report)
}

fn lines(store: &Store, report: &mut IndexReport) -> Result<String, StoreError> {
    let root = store.layout().root();
    let mut names = Vec::new();
    for entry in fs::read_dir(root).on(Op::List, root)? {
        let name = entry.on(Op::List, root)?.file_name();
        names.extend(name.into_string().ok().and_then(|name| ModelName::try_from(name).ok()));
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        let path = store.layout().model(&name).model_cfg();
        match read(&path)? {
            None => {}
            Some(Err(reason)) => report.leave_out(path, reason),
            Some(Ok(mut card)) => {
                card.insert("sanitized_name", Json::from(name.as_str()));
                text.push_str(&card.to_python_json());
                text.push('\n');
                report.lines += 1;
            }
        }
    }
    Ok(text)
}

/// The object in a model_cfg.json, or what is wrong with it; none where there is no such file.
fn read(path: &Path) -> Result<Option<Result<Record, String>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(match std::str::from_utf8(&bytes) {
            Ok(text) => Record::parse(text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        })),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).on(Op::Read, path),
    }
}
