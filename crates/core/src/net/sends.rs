//! Small writes to many connections in one system call, by io_uring where the kernel has it.
//!
//! Acknowledgements are a few bytes for each of many connections, and a call for each is much of what they cost
//! (ADR 12). None of these writes may wait, so all of them are done when the call returns. They never say what is
//! wrong with a connection: what was not taken is written again by `Connection::flush`, which does.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, types};

/// Writes in one call.
pub(super) const MOST: usize = 256;
/// Writes from which one call is cheaper than one for each.
const FEW: usize = 4;
/// Bytes of a write up to which it is worth copying them.
pub(super) const LITTLE: usize = 512;

pub(super) struct Sends {
    /// None: the kernel has none, or has failed, and each connection gets a call of its own.
    ring: Option<IoUring>,
    /// Those to come, at most MOST, with their bytes one after the other.
    writes: Vec<Write>,
    bytes: Vec<u8>,
}

struct Write {
    slot: u32,
    fd: RawFd,
    end: usize,
    taken: Option<usize>,
}

impl Sends {
    /// wanted: else there is no ring
    pub fn new(wanted: bool) -> Sends {
        // Kernels before 5.18 do not know the flag, which lets a call go on behind a write that is refused.
        let ring = || IoUring::builder().setup_submit_all().build(MOST as u32).ok();
        Sends { ring: wanted.then(ring).flatten(), writes: Vec::new(), bytes: Vec::new() }
    }

    /// Whether it is worth it for so many connections.
    pub fn pays(&self, connections: usize) -> bool {
        self.ring.is_some() && connections >= FEW
    }

    /// slot: told with what became of it
    pub fn add(&mut self, slot: u32, fd: RawFd, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.writes.push(Write { slot, fd, end: self.bytes.len(), taken: None });
    }

    /// Writes what was added. `done` gets each slot and how many bytes its socket has taken; none: nobody knows.
    pub fn send(&mut self, mut done: impl FnMut(u32, Option<usize>)) {
        if let Some(ring) = &mut self.ring
            && let Err(unsent) = submit(ring, &self.bytes, &mut self.writes)
        {
            let from = self.writes.len() - unsent;
            self.writes[from..].iter_mut().for_each(|write| write.taken = Some(0));
            self.ring = None;
        }
        self.writes.drain(..).for_each(|write| done(write.slot, write.taken));
        self.bytes.clear();
    }
}

/// Submits all writes and notes what became of them. The error is how many at the end were not submitted.
fn submit(ring: &mut IoUring, bytes: &[u8], writes: &mut [Write]) -> Result<(), usize> {
    let mut from = 0;
    for (index, write) in writes.iter().enumerate() {
        let bytes = &bytes[from..write.end];
        from = write.end;
        let entry = opcode::Send::new(types::Fd(write.fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build()
            .user_data(index as u64);
        // SAFETY: `bytes` outlives the submission below. A send with MSG_DONTWAIT ends within it, and only reads.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            break;
        }
    }
    let mut unsent = writes.len();
    while unsent > 0 {
        match ring.submit() {
            Ok(0) => break,
            Ok(submitted) => unsent = unsent.saturating_sub(submitted),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    for completion in ring.completion() {
        if let Some(write) = writes.get_mut(completion.user_data() as usize) {
            write.taken = Some(usize::try_from(completion.result()).unwrap_or(0));
        }
    }
    if unsent > 0 { Err(unsent) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn sent(sends: &mut Sends) -> Vec<(u32, Option<usize>)> {
        let mut all = Vec::new();
        sends.send(|slot, taken| all.push((slot, taken)));
        all
    }

    #[test]
    fn each_connection_gets_its_bytes_in_one_call() {
        let mut sends = Sends::new(true);
        if !sends.pays(MOST) {
            eprintln!("not tested: this kernel has no io_uring for us");
            return;
        }
        let pairs: Vec<_> = (0..MOST).map(|_| UnixStream::pair().unwrap()).collect();
        for round in 0..3u8 {
            for (slot, (ours, _)) in pairs.iter().enumerate() {
                sends.add(slot as u32, ours.as_raw_fd(), &[slot as u8; 7][..1 + slot % 7]);
                assert!(sends.writes.len() == slot + 1);
            }
            let expected: Vec<_> = (0..MOST).map(|slot| (slot as u32, Some(1 + slot % 7))).collect();
            assert_eq!(sent(&mut sends), expected, "round {round}");
            for (slot, (_, theirs)) in pairs.iter().enumerate() {
                let mut got = vec![0; 1 + slot % 7];
                (&*theirs).read_exact(&mut got).unwrap();
                assert_eq!(got, vec![slot as u8; 1 + slot % 7]);
            }
        }
    }

    #[test]
    fn what_a_socket_does_not_take_is_told_and_delays_nobody() {
        let mut sends = Sends::new(true);
        if !sends.pays(MOST) {
            eprintln!("not tested: this kernel has no io_uring for us");
            return;
        }
        let (full, _open) = UnixStream::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while io::Write::write(&mut &full, &[0; 4096]).is_ok() {}
        let (gone, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let (good, _theirs) = UnixStream::pair().unwrap();
        for (slot, fd) in [full.as_raw_fd(), gone.as_raw_fd(), -1, good.as_raw_fd()].into_iter().enumerate() {
            sends.add(slot as u32, fd, b"abcd");
        }
        assert_eq!(sent(&mut sends), [(0, Some(0)), (1, Some(0)), (2, Some(0)), (3, Some(4))]);
        assert!(sends.pays(MOST));
        assert_eq!(sent(&mut sends), []);
    }

    #[test]
    fn without_a_ring_it_does_not_pay() {
        assert!(!Sends::new(false).pays(MOST));
        assert!(!Sends::new(true).pays(1));
    }
}
