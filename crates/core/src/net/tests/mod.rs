//! The gateway over real sockets, rule by rule. Time that matters is moved by hand.

mod access;
mod client;
mod conformance;
mod connecting;
mod durable;
mod exactly_once;
mod faults;
mod hot;
mod inspecting;
mod lifetimes;
mod limits;
mod publishing;
mod rebinding;
mod retained;
mod sessions;
mod shared;
mod subscribing;
mod transports;
mod unsaid;
mod wills;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use tempfile::TempDir;

use self::client::Client;
use super::*;
use crate::decode::{FieldSpec, Format, StreamSpec, TimeSpec, TimeUnit};
use crate::log::{Durability, Log, LogOptions};
use crate::schema::{Column, ColumnType, Offset, Schema, SchemaId, SchemaRef, StreamId};

const TELEMETRY: StreamId = StreamId(16);
const PAYLOAD: &[u8] = br#"{"ts":1732000000123,"temperature":21.5,"humidity":40}"#;

fn log_options() -> LogOptions {
    LogOptions {
        partitions: 4,
        segment_bytes: 8 << 20,
        durability: Durability::Sync,
        max_keys: 100_000,
        ..LogOptions::default()
    }
}

fn telemetry() -> StreamBinding {
    let field = |name: &str| FieldSpec { name: name.into(), ty: ColumnType::Double, path: name.into() };
    let spec = StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{site}/{device}/telemetry".into(),
        format: Format::Json,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields: vec![field("temperature"), field("humidity")],
        captures: vec!["site".into(), "device".into()],
        infer: false,
        protobuf: None,
    };
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let columns = vec![
        column("site", ColumnType::String),
        column("device", ColumnType::String),
        column("ts", ColumnType::Timestamp),
        column("received_at", ColumnType::Timestamp),
        column("temperature", ColumnType::Double),
        column("humidity", ColumnType::Double),
    ];
    let schema = Schema::new(SchemaId(16), TELEMETRY, "telemetry", columns, Some("device")).unwrap();
    StreamBinding { spec, schema: SchemaRef::new(schema) }
}

struct Fixture {
    gateway: Option<Gateway>,
    log: Log,
    clock: Clock,
    _directory: Option<TempDir>,
}

fn options() -> GatewayOptions {
    GatewayOptions {
        address: ([127, 0, 0, 1], 0).into(),
        threads: 2,
        clock: Clock::manual(),
        ..GatewayOptions::default()
    }
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut GatewayOptions)) -> Fixture {
        let directory = TempDir::new().unwrap();
        let log = Log::open(directory.path(), log_options(), schemas()).unwrap();
        let mut fixture = Fixture::on_log(log, change);
        fixture._directory = Some(directory);
        fixture
    }

    fn on_log(log: Log, change: impl FnOnce(&mut GatewayOptions)) -> Fixture {
        let mut options = options();
        change(&mut options);
        let clock = options.clock.clone();
        let raw_filters = vec!["$aws/things/+/shadow/#".to_owned()];
        let gateway = Gateway::start(log.clone(), options, vec![telemetry()], raw_filters).unwrap();
        Fixture { gateway: Some(gateway), log, clock, _directory: None }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    /// An MQTT 3.1.1 client that is connected.
    fn v3(&self, client_id: &str) -> Client {
        Client::connected(self.gateway().address(), crate::mqtt::Version::V311, client_id)
    }

    /// An MQTT 5 client that is connected.
    fn v5(&self, client_id: &str) -> Client {
        Client::connected(self.gateway().address(), crate::mqtt::Version::V5, client_id)
    }

    /// A socket on which nothing has been said.
    fn raw(&self) -> Client {
        Client::open(self.gateway().address())
    }

    /// Durable rows of a stream.
    fn rows(&self, stream: StreamId) -> Vec<RecordBatch> {
        let offsets = vec![Offset(0); usize::from(self.log.partitions())];
        let mut reader = self.log.reader(stream, &offsets).unwrap();
        std::iter::from_fn(|| reader.read(100_000).unwrap()).collect()
    }

    fn row_count(&self, stream: StreamId) -> usize {
        self.rows(stream).iter().map(RecordBatch::num_rows).sum()
    }

    /// A string column of all rows of a stream.
    fn strings(&self, stream: StreamId, column: &str) -> Vec<String> {
        let mut all = Vec::new();
        for batch in self.rows(stream) {
            let array = batch.column_by_name(column).unwrap();
            all.extend(array.as_string::<i32>().iter().map(|value| value.unwrap_or("NULL").to_owned()));
        }
        all
    }

    /// Waits until the counters are as wanted, and checks that each snapshot balances.
    fn until(&self, what: &str, wanted: impl Fn(&Counters) -> bool) -> Counters {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let counters = self.gateway().counters();
            assert_eq!(counters.imbalance(), 0, "{counters:?}");
            if wanted(&counters) {
                return counters;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {counters:?}");
            std::thread::yield_now();
        }
    }
}

fn schemas() -> Vec<Schema> {
    vec![
        raw_schema(),
        dead_letters_schema(),
        downlink_schema(),
        crate::sessions::sessions_schema(),
        telemetry().schema.as_ref().clone(),
    ]
}
