//! The commit thread: takes what is queued, has it written as one commit, answers.
//!
//! A commit begins when `commit_bytes` are queued, `commit_interval` has passed since the last one began, or all
//! who submit have said that nothing more is on its way. So an idle log commits at once and a busy one gathers.
//! How a commit becomes durable is in [`write`](super::write).
//!
//! Where space is missing, patient submissions (those of devices) stay queued and are tried again, so the queue fills
//! and its writers stop; the others (results of services, HTTP bodies) are told, or find place in the reserve.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::error::LogError;
use super::segment::Segment;
use super::segments::Segments;
use super::shared::{Shared, Submission};
use super::write::Writer;

/// Blocks in one commit are counted in 16 bits.
const MAX_BLOCKS: usize = 60_000;
/// From one try to the next while space is missing.
const RETRY: Duration = Duration::from_millis(100);

pub struct Committer {
    shared: Arc<Shared>,
    writer: Writer,
    began_at: Option<Instant>,
}

enum Work {
    Commit(Vec<Submission>),
    Sync,
    Trim,
    Stop,
}

impl Committer {
    /// `keys`: per partition, keys that the log durably holds. Without an active segment (the disk is
    /// full) the first commit tries to begin one.
    pub fn new(
        shared: Arc<Shared>,
        segments: Segments,
        active: Option<Arc<Segment>>,
        keys: Vec<u32>,
    ) -> Committer {
        let writer = Writer::new(Arc::clone(&shared), segments, active, keys);
        Committer { shared, writer, began_at: None }
    }

    /// Runs until the log is closed and everything queued has been answered.
    pub fn run(mut self) {
        loop {
            match self.next_work() {
                Work::Commit(submissions) => self.commit(submissions),
                Work::Sync => {}
                Work::Trim => self.writer.trim(),
                Work::Stop => break,
            }
            self.writer.sync_if_due(false);
        }
        self.writer.sync_if_due(true);
        {
            let mut published = self.shared.published.lock();
            published.closed = true;
            published.waiting.iter().for_each(|(_, changed)| {
                changed.notify_all();
            });
        }
        self.shared.committed.notify_all();
        self.shared.room.notify_all();
    }

    fn next_work(&mut self) -> Work {
        let shared = self.shared.clone();
        let options = &shared.options;
        let mut queue = shared.queue.lock();
        loop {
            let now = Instant::now();
            if let Some(retry_at) = queue.retry_at.filter(|at| now < *at && !queue.closing) {
                if std::mem::take(&mut queue.trim) {
                    return Work::Trim;
                }
                shared.work.wait_until(&mut queue, retry_at);
                continue;
            }
            if !queue.submissions.is_empty() {
                let due = self.began_at.map_or(now, |began| began + options.commit_interval);
                if queue.bytes < options.commit_bytes && now < due && !queue.hurry && !queue.closing {
                    queue.gathering = true;
                    shared.work.wait_until(&mut queue, due);
                    queue.gathering = false;
                    continue;
                }
                self.began_at = Some(now);
                queue.hurry = false;
                let most = options.commit_bytes.min(options.segment_bytes as usize / 2);
                let (mut taken, mut bytes, mut blocks) = (Vec::new(), 0, 0);
                while let Some(front) = queue.submissions.front() {
                    bytes += front.bytes();
                    blocks += front.blocks.len();
                    if !taken.is_empty() && (bytes > most || blocks > MAX_BLOCKS) {
                        bytes -= front.bytes();
                        break;
                    }
                    taken.extend(queue.submissions.pop_front());
                }
                queue.bytes -= bytes;
                queue.in_flight = bytes;
                return Work::Commit(taken);
            }
            if queue.closing {
                return Work::Stop;
            }
            if std::mem::take(&mut queue.trim) {
                return Work::Trim;
            }
            queue.idle = true;
            let mut timed_out = false;
            if let Some(due) = self.writer.sync_due() {
                timed_out = shared.work.wait_until(&mut queue, due).timed_out();
            } else {
                shared.work.wait(&mut queue);
            }
            queue.idle = false;
            if timed_out {
                return Work::Sync;
            }
        }
    }

    fn commit(&mut self, mut submissions: Vec<Submission>) {
        let began = Instant::now();
        let mut result = self.writer.write_all(&submissions);
        match &result {
            Err(error) if error.is_full() => {
                let error = error.clone();
                submissions = self.hold(submissions, &error);
                (self.writer.reserve, result) = (true, Err(error));
                if !submissions.is_empty() {
                    result = self.writer.write_all(&submissions);
                }
                self.writer.reserve = false;
            }
            _ => self.release(),
        }
        {
            let mut queue = self.shared.queue.lock();
            queue.in_flight = 0;
            self.shared.pending_bytes.store(queue.bytes, Ordering::Relaxed);
        }
        self.shared.room.notify_all();
        {
            let mut counters = self.shared.counters.lock();
            let now = Instant::now();
            counters.commit_time.record(now - began);
            let count = submissions.len() as u64;
            match &result {
                Ok(_) => {
                    counters.stats.submissions += count;
                    counters.stats.rows += submissions
                        .iter()
                        .flat_map(|submission| &submission.blocks)
                        .map(|block| u64::from(block.rows))
                        .sum::<u64>();
                    if let Some(oldest) = submissions.first() {
                        counters.submit_time.record(now - oldest.queued_at);
                    }
                }
                Err(error) if count > 0 => {
                    counters.stats.failed += count;
                    match error {
                        LogError::DiskFull { .. } => counters.stats.disk_full += count,
                        LogError::DiskBound { .. } => counters.stats.disk_bound += count,
                        _ => {}
                    }
                    counters.stats.last_error = Some(error.to_string());
                }
                Err(_) => {}
            }
        }
        match result {
            Ok(receipts) => {
                submissions.iter().for_each(|submission| self.shared.deduping.settle(&submission.entered));
                submissions
                    .into_iter()
                    .zip(receipts)
                    .for_each(|(submission, receipt)| submission.finish(Ok(receipt)));
            }
            Err(error) => self.fail(submissions, &error),
        }
    }

    /// Space is missing: who is patient waits at the front of the queue. Gives the others, those queued too.
    fn hold(&self, submissions: Vec<Submission>, error: &LogError) -> Vec<Submission> {
        // First, so that whoever sees that the log is full finds the reason.
        self.shared.counters.lock().stats.last_error = Some(error.to_string());
        let mut queue = self.shared.queue.lock();
        if queue.closing {
            return submissions;
        }
        queue.in_flight = 0;
        let queued = std::mem::take(&mut queue.submissions);
        let (patient, others): (Vec<_>, Vec<_>) =
            submissions.into_iter().chain(queued).partition(|submission| submission.patient);
        queue.bytes = patient.iter().map(Submission::bytes).sum();
        queue.submissions = patient.into();
        if !queue.submissions.is_empty() {
            queue.retry_at = Some(Instant::now() + RETRY);
            self.shared.full.store(true, Ordering::Release);
        }
        drop(queue);
        self.shared.room.notify_all();
        // What they left out may be among the rows that wait, which they would go ahead of.
        let (relying, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|submission| submission.entered.relies_on_others());
        if !relying.is_empty() {
            self.fail(relying, error);
        }
        others
    }

    /// There is space.
    fn release(&self) {
        if self.shared.full.swap(false, Ordering::Relaxed) {
            self.shared.queue.lock().retry_at = None;
        }
    }

    /// Answers with the error; so are all that had left out a row because of one that is lost now.
    fn fail(&self, submissions: Vec<Submission>, error: &LogError) {
        let deduping = &self.shared.deduping;
        let (mut failed, mut from) = (submissions, 0);
        while from < failed.len() {
            failed[from..].iter().for_each(|submission| deduping.take_back(&submission.entered));
            from = failed.len();
            let mut queue = self.shared.queue.lock();
            // Whoever looks at the tables from here on does not find the keys; who looked before sees the fence.
            deduping.failed();
            let (relying, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut queue.submissions)
                .into_iter()
                .partition(|submission| submission.entered.relies_on_others());
            queue.submissions = rest.into();
            queue.bytes -= relying.iter().map(Submission::bytes).sum::<usize>();
            self.shared.pending_bytes.store(queue.bytes, Ordering::Relaxed);
            failed.extend(relying);
        }
        failed.into_iter().for_each(|submission| submission.finish(Err(error.clone())));
    }
}
