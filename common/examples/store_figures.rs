//! Measures the store on the disk a directory is on: commits a second by threads, the check of a
//! re-run, the indexes. `cargo run --release -p common --example store_figures -- DIR [PROMPTS]`

use std::{
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use common::{
    capture::Capture,
    job::RunId,
    prompt::PromptHash,
    store::{CacheCheck, Event, Journal, ModelName, Store},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: store_figures DIR [PROMPTS]")?).join("store_figures");
    let prompts: usize = args.next().map_or(Ok(100_000), |text| text.parse())?;
    if dir.exists() {
        return Err(format!("{} exists already; remove it first", dir.display()).into());
    }
    let measured = commits(&dir).and_then(|()| checks(&dir, prompts));
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn json(text: &str, hash: &PromptHash) -> String {
    let tokens = "\"some\", ".repeat(100);
    format!(
        "{{\"text\": \"{text}\", \"hash\": \"{hash}\", \"n_tokens\": 101, \"tokens\": [{tokens}\"more\"]}}"
    )
}

/// Durable commits of 1 MiB each.
fn commits(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    const COMMITS: usize = 500;
    let arrays = vec![7; 1 << 20];
    for threads in [1, 2, 4, 8] {
        let run = RunId(format!("commits-{threads}"));
        let store = Store::new(dir, &run);
        let model = store.model(&ModelName::try_from(run.0.as_str())?, &Capture::default(), 12)?;
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        // A job of 25 prompts.
                        let first = next.fetch_add(25, Ordering::Relaxed);
                        if first >= COMMITS {
                            break;
                        }
                        let job: Vec<_> =
                            (first..first + 25).map(|i| PromptHash::of(&i.to_string())).collect();
                        let announced = model.announce(job.clone()).expect("announce");
                        for hash in &job {
                            model
                                .commit(hash, json("x", hash).as_bytes(), |file| {
                                    file.write_all(&arrays).map(|()| arrays.len() as u64)
                                })
                                .expect("commit");
                        }
                        drop(announced);
                    }
                });
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "commit, {threads} threads: {:.0} prompts/s of 1 MiB, {:.1} ms each",
            COMMITS as f64 / seconds,
            seconds * 1e3 / COMMITS as f64
        );
    }
    Ok(())
}

/// A re-run over prompts that are committed already, and the indexes.
fn checks(dir: &std::path::Path, prompts: usize) -> Result<(), Box<dyn std::error::Error>> {
    let run = RunId("checks".to_owned());
    let store = Store::new(dir, &run);
    let model = store.layout().model(&ModelName::try_from("checks")?);
    let hashes: Vec<PromptHash> = (0..prompts).map(|i| PromptHash::of(&i.to_string())).collect();
    // Not through commits: their fsyncs are measured above.
    for hash in &hashes {
        std::fs::create_dir_all(model.prompt(hash))?;
        std::fs::write(model.prompt_json(hash), json("x", hash))?;
        std::fs::write(model.prompt(hash).join("activations.npz"), "x")?;
    }
    let time = |what: &str, work: &mut dyn FnMut() -> Result<(), Box<dyn std::error::Error>>| {
        let start = Instant::now();
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s, {:.0} prompts/s", prompts as f64 / seconds);
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let check = || CacheCheck::new(model.clone(), &Capture::default(), 12);
    time("check, all cached", &mut || {
        assert!(check().check(&hashes)?.into_iter().all(|cached| cached));
        Ok(())
    })?;
    let others: Vec<PromptHash> = (0..prompts).map(|i| PromptHash::of(&format!("absent {i}"))).collect();
    time("check, none cached", &mut || {
        assert!(!check().check(&others)?.into_iter().any(|cached| cached));
        Ok(())
    })?;
    time("is_cached, one by one", &mut || {
        let check = check();
        for hash in &hashes {
            assert!(check.is_cached(hash)?);
        }
        Ok(())
    })?;
    time("index, all new", &mut || {
        assert_eq!(store.index_prompts(&model)?.read, prompts);
        Ok(())
    })?;
    time("index, nothing new", &mut || {
        assert_eq!(store.index_prompts(&model)?.read, 0);
        Ok(())
    })?;
    std::fs::remove_dir_all(model.prompt(&hashes[0]))?;
    time("index, one gone", &mut || {
        assert_eq!(store.index_prompts(&model)?.dropped, 1);
        Ok(())
    })?;
    let journal = Journal::new(&store, &model, &run);
    time("journal, a line a prompt", &mut || {
        for hash in &hashes {
            journal.note(Event::Committed { hash: hash.clone(), bytes: 1 })?;
        }
        Ok(journal.sync()?)
    })?;
    time("index from the journals", &mut || {
        assert_eq!(store.index_run(&model, Some(&run))?.lines, prompts - 1);
        Ok(())
    })?;
    time("sweep", &mut || {
        assert_eq!(store.sweep().files, 0);
        Ok(())
    })
}
