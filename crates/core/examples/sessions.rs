//! How long a start takes with many stored sessions: writes them in a new directory, then starts on it.
//!
//! `cargo run --release --example sessions -- DIRECTORY [SESSIONS] [THREADS]`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_core::log::{Disk, Log, LogOptions};
use headwater_core::net::{Gateway, GatewayOptions, dead_letters_schema, downlink_schema, raw_schema};
use headwater_core::rows::{Cell, Rows};
use headwater_core::schema::SchemaRef;
use headwater_core::sessions::{
    Change, Open, SessionFiles, SessionStore, SessionTable, StoredSubscription, sessions_schema,
};

/// Sessions of one commit.
const TOGETHER: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("which DIRECTORY shall the sessions use?")?;
    let sessions: u64 = arguments.next().unwrap_or_else(|| "1000000".into()).parse()?;
    let threads = arguments.next().unwrap_or_else(|| "2".into()).parse()?;
    let directory = Path::new(&directory);
    if directory.join("sessions").exists() {
        return Err("the directory has sessions already; choose a new one".into());
    }

    let log = open(directory)?;
    let (store, _) = SessionStore::open(files(directory)?, log.clone())?;
    for first in (1..=sessions).step_by(TOGETHER as usize) {
        let mut rows = Rows::new(SchemaRef::new(sessions_schema()));
        for id in first..(first + TOGETHER).min(sessions + 1) {
            let client_id = format!("device-{id:08}");
            let open = Open {
                epoch: 1,
                version: 5,
                expiry_s: 86_400,
                client_id: &client_id,
                owner: None,
                will: None,
            };
            let filter = format!("commands/{client_id}").into();
            let subscription = StoredSubscription { options: 1, identifier: 0, filter };
            let close = Change::Close { expiry_s: 86_400, will: false };
            for change in [Change::Open(open), Change::Subscribe(subscription), close] {
                let mut bytes = Vec::new();
                change.put(&mut bytes);
                let now_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros();
                rows.push([Cell::Timestamp(now_us as i64), Cell::Bigint(id as i64), Cell::Bytes(&bytes)])?;
            }
        }
        log.append(&[&rows])?;
    }
    let began = Instant::now();
    store.compact()?;
    println!("snapshot of {sessions} sessions written in {:?}", began.elapsed());
    drop(store);
    log.close();
    drop(log);

    let began = Instant::now();
    let log = open(directory)?;
    let opened = began.elapsed();
    let options = GatewayOptions {
        address: ([127, 0, 0, 1], 0).into(),
        threads,
        sessions: Some(files(directory)?),
        ..GatewayOptions::default()
    };
    let gateway = Gateway::start(log.clone(), options, vec![], vec![])?;
    println!("log opened in {opened:?}, accepting after {:?}", began.elapsed());
    let counters = gateway.stop(Duration::from_secs(10));
    println!("{} sessions, {} subscriptions", counters.sessions, counters.subscriptions);
    log.close();
    Ok(())
}

fn open(directory: &Path) -> Result<Log, Box<dyn std::error::Error>> {
    let schemas = vec![raw_schema(), dead_letters_schema(), downlink_schema(), sessions_schema()];
    Ok(Log::open(&directory.join("log"), LogOptions::default(), schemas)?)
}

fn files(directory: &Path) -> std::io::Result<Arc<dyn SessionTable>> {
    Ok(Arc::new(SessionFiles::new(Arc::new(Disk::open(&directory.join("sessions"))?))))
}
