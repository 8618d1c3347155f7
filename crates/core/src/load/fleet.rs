//! The fleet as its user holds it: started, asked for reports, stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Poll, Waker};
use parking_lot::Mutex;

use hdrhistogram::Histogram;

use super::faults::Label;
use super::generator::Gate;
use super::options::{FleetError, FleetOptions};
use super::payloads::Payloads;
use super::report::{Counters, Errors, FleetReport, Shown, new_histogram};
use super::worker::{WAKER, Worker};

/// What `Shared::stop` holds.
pub(super) const RUN: u8 = 0;
/// Send nothing new, wait for acknowledgements.
pub(super) const DRAIN: u8 = 1;
/// End at once.
pub(super) const ABANDON: u8 = 2;

/// What one thread shares with the fleet's user.
pub(super) struct Shared {
    pub shown: Mutex<Shown>,
    pub stop: AtomicU8,
    pub gate: Arc<Gate>,
}

/// Whole histograms: name, and (microseconds, count) of each step that was hit.
pub type Histograms = Vec<(&'static str, Vec<(u64, u64)>)>;

struct Thread {
    shared: Arc<Shared>,
    waker: Waker,
    handle: Option<JoinHandle<()>>,
}

/// A running fleet. Dropping it without `stop` ends it at once.
pub struct Fleet {
    options: Arc<FleetOptions>,
    payloads: Arc<Payloads>,
    started: Instant,
    gate: Arc<Gate>,
    threads: Vec<Thread>,
}

impl Fleet {
    /// Starts the threads and returns; connections come up in the background and are retried for ever.
    ///
    /// errors: options that cannot be played, too many connections for this process, no thread
    pub fn start(options: FleetOptions) -> Result<Fleet, FleetError> {
        let options = Arc::new(options.with_start_time());
        let payloads = Arc::new(Payloads::new(&options)?);
        allow_open_files(u64::from(options.all_connections()))?;
        let started = Instant::now();
        let count = thread_count(&options);
        let expected = if options.generator.start_together { options.all_connections() } else { 0 };
        let gate = Arc::new(Gate::new(expected));
        let mut fleet = Fleet { options, payloads, started, gate, threads: Vec::with_capacity(count) };
        for at in 0..count {
            fleet.threads.push(fleet.start_thread(at, count)?);
        }
        Ok(fleet)
    }

    fn start_thread(&self, at: usize, count: usize) -> Result<Thread, FleetError> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let shared = Arc::new(Shared {
            shown: Mutex::new(Shown {
                counters: Counters::default(),
                ack_latency_us: new_histogram(),
                connect_us: new_histogram(),
                delivery_us: new_histogram(),
                errors: Errors::new(),
                fault_readings: vec![0; self.payloads.labels().len()],
                last_error: None,
                finished_at: None,
            }),
            stop: AtomicU8::new(RUN),
            gate: Arc::clone(&self.gate),
        });
        let (options, payloads) = (Arc::clone(&self.options), Arc::clone(&self.payloads));
        let worker = Worker::new(options, payloads, Arc::clone(&shared), poll, self.started, at, count);
        let handle = std::thread::Builder::new().name(format!("fleet-{at}")).spawn(move || worker.run())?;
        Ok(Thread { shared, waker, handle: Some(handle) })
    }

    /// A snapshot; each thread's share of it is consistent in itself.
    pub fn report(&self) -> FleetReport {
        let shown: Vec<_> = self.threads.iter().map(|thread| thread.shared.shown.lock()).collect();
        FleetReport::new(
            self.options.qos,
            self.options.all_connections(),
            self.payloads.labels(),
            self.running(),
            shown.iter().map(|shown| &**shown),
        )
    }

    /// Since the start, or since the gate opened; 0 before that.
    fn running(&self) -> Duration {
        let opened = self.gate.opened_ns().map(Duration::from_nanos);
        opened.map_or(Duration::ZERO, |opened| self.started.elapsed().saturating_sub(opened))
    }

    /// Lets those send that are up, without waiting for the others (`start_together`).
    pub fn open(&self) {
        self.gate.open(self.started.elapsed().as_nanos() as u64);
    }

    /// Whether sending has begun.
    pub fn is_open(&self) -> bool {
        self.gate.opened_ns().is_some()
    }

    /// Latencies so far: of acknowledgements, connecting and deliveries.
    pub fn histograms(&self) -> Histograms {
        let (mut ack, mut connect, mut delivery) = (new_histogram(), new_histogram(), new_histogram());
        for thread in &self.threads {
            let shown = thread.shared.shown.lock();
            // Threads share one set of bounds, for which adding cannot fail.
            let _ = ack.add(&shown.ack_latency_us);
            let _ = connect.add(&shown.connect_us);
            let _ = delivery.add(&shown.delivery_us);
        }
        let steps = |histogram: &Histogram<u64>| {
            histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
        };
        vec![("ack", steps(&ack)), ("connect", steps(&connect)), ("delivery", steps(&delivery))]
    }

    /// The planted faults, from the start on.
    pub fn labels(&self) -> &[Label] {
        self.payloads.labels()
    }

    /// Sends nothing new, waits up to `drain` for acknowledgements, disconnects.
    pub fn stop(mut self) -> FleetReport {
        self.end(DRAIN);
        self.report()
    }

    fn end(&mut self, how: u8) {
        for thread in &self.threads {
            thread.shared.stop.fetch_max(how, Ordering::Release);
            // If the wake-up fails the thread still sees the flag within a second.
            let _ = thread.waker.wake();
        }
        for thread in &mut self.threads {
            if thread.handle.take().is_some_and(|handle| handle.join().is_err()) {
                thread.shared.shown.lock().last_error =
                    Some("a fleet thread panicked; its counters are incomplete".to_owned());
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end(ABANDON);
    }
}

fn thread_count(options: &FleetOptions) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let wanted = if options.threads == 0 { cores() } else { options.threads };
    wanted.min(options.all_connections() as usize).max(1)
}

/// Raises this process's soft limit of open files as far as needed and allowed.
fn allow_open_files(connections: u64) -> Result<(), FleetError> {
    // Beside the sockets: the threads' polls and wakers, and what the process has open anyway.
    let needed = connections + 128;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit to the valid pointer it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= needed {
        return Ok(());
    }
    let raised = libc::rlimit { rlim_cur: needed.min(limit.rlim_max), rlim_max: limit.rlim_max };
    // SAFETY: setrlimit only reads the rlimit it is given.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) };
    if set == 0 && raised.rlim_cur >= needed {
        return Ok(());
    }
    Err(FleetError::OpenFiles { connections, limit: limit.rlim_max })
}
