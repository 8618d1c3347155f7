//! Edge nodes of Sparkplug as the gateway sees them: what their births declared, the sequence of their messages, and
//! when they are to be asked for a birth.
//!
//! All of it is in memory: after a start nothing is known, so the first data of each edge node asks for its birth.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::decode::{SparkplugHead, SparkplugKind, SparkplugMetrics, SparkplugTopic};

/// Memory for what births declare, of all edge nodes together. Ours.
const MAX_BYTES: usize = 64 << 20;
/// Roughly what an edge node or a device takes beside its name.
const NODE_BYTES: usize = 256;
/// Between two requests to one edge node, µs. Ours: a birth may take it some seconds.
const REBIRTH_US: i64 = 10_000_000;
const SHARDS: usize = 16;

/// Edge nodes by group and name, `group/node`.
type Shard = Mutex<HashMap<Box<str>, Node>>;

#[derive(Debug)]
pub(super) struct EdgeNodes {
    shards: [Shard; SHARDS],
    hasher: RandomState,
    bytes: AtomicUsize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Node {
    metrics: Arc<SparkplugMetrics>,
    /// Devices whose birth was the last that was heard of them.
    devices: HashSet<Box<str>>,
    born: bool,
    seq: Option<u64>,
    /// Of the birth.
    bd_seq: Option<u64>,
    asked_us: Option<i64>,
    /// Its part of `EdgeNodes::bytes`.
    bytes: usize,
}

/// What is known for one message.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub metrics: Arc<SparkplugMetrics>,
    /// The edge node is to be asked for its births.
    pub ask: bool,
}

impl EdgeNodes {
    pub fn new() -> EdgeNodes {
        EdgeNodes {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            bytes: AtomicUsize::new(0),
            max_bytes: MAX_BYTES,
        }
    }

    /// Takes note of a message. `key` is scratch. A payload that cannot be read changes nothing.
    pub fn hear(&self, topic: SparkplugTopic<'_>, payload: &[u8], now_us: i64, key: &mut String) -> Heard {
        let node_life = matches!(topic.kind, SparkplugKind::NodeBirth | SparkplugKind::NodeDeath);
        let Ok(head) = SparkplugHead::read(payload, node_life) else { return Heard::default() };
        if topic.kind == SparkplugKind::Command {
            return Heard::default();
        }
        key.clear();
        key.push_str(topic.group);
        key.push('/');
        key.push_str(topic.edge);
        let shard = self.hasher.hash_one(key.as_str()) as usize % SHARDS;
        let mut nodes = self.shards[shard].lock();
        if topic.kind == SparkplugKind::NodeDeath {
            self.bury(&mut nodes, key, head.bd_seq);
            return Heard::default();
        }
        if !nodes.contains_key(key.as_str()) {
            // Full: the message is taken for itself, and nobody is asked for what could not be kept.
            if !self.reserve(NODE_BYTES + key.len()) {
                return Heard::default();
            }
            let node = Node { bytes: NODE_BYTES + key.len(), ..Node::default() };
            nodes.insert(key.as_str().into(), node);
        }
        let Some(node) = nodes.get_mut(key.as_str()) else { return Heard::default() };
        let device = topic.device.unwrap_or_default();
        let mut complete = true;
        match topic.kind {
            SparkplugKind::NodeBirth => {
                let before = std::mem::replace(&mut node.bytes, NODE_BYTES + key.len());
                self.release(before - node.bytes);
                node.metrics = Arc::default();
                node.devices.clear();
                (node.born, node.bd_seq, node.seq) = (true, head.bd_seq, head.seq);
                self.declare(node, "", payload);
            }
            _ => {
                let next = node.seq.map(|seq| (seq + 1) % 256);
                complete = node.born && head.seq.is_some() && head.seq == next;
                node.seq = head.seq.or(node.seq);
            }
        }
        match topic.kind {
            SparkplugKind::DeviceBirth => {
                if !node.devices.contains(device) && self.reserve(NODE_BYTES + device.len()) {
                    node.bytes += NODE_BYTES + device.len();
                    node.devices.insert(device.into());
                }
                self.declare(node, device, payload);
            }
            SparkplugKind::DeviceDeath if node.devices.remove(device) => {
                node.bytes -= NODE_BYTES + device.len();
                self.release(NODE_BYTES + device.len());
            }
            SparkplugKind::DeviceData => complete &= node.devices.contains(device),
            _ => {}
        }
        let ask = !complete && node.asked_us.is_none_or(|asked| (now_us - asked).abs() >= REBIRTH_US);
        if ask {
            node.asked_us = Some(now_us);
        }
        Heard { metrics: Arc::clone(&node.metrics), ask }
    }

    /// An alias that no birth declared: whether the edge node is to be asked.
    pub fn missed(&self, topic: SparkplugTopic<'_>, now_us: i64, key: &mut String) -> bool {
        key.clear();
        key.push_str(topic.group);
        key.push('/');
        key.push_str(topic.edge);
        let mut nodes = self.shards[self.hasher.hash_one(key.as_str()) as usize % SHARDS].lock();
        let Some(node) = nodes.get_mut(key.as_str()) else { return false };
        let ask = node.asked_us.is_none_or(|asked| (now_us - asked).abs() >= REBIRTH_US);
        if ask {
            node.asked_us = Some(now_us);
        }
        ask
    }

    /// The broker publishes a will for each connection that breaks: one whose bdSeq is not that of the birth is of an
    /// earlier connection, and says nothing of the present one.
    fn bury(&self, nodes: &mut HashMap<Box<str>, Node>, key: &str, bd_seq: Option<u64>) {
        if nodes.get(key).is_some_and(|node| node.bd_seq == bd_seq)
            && let Some(node) = nodes.remove(key)
        {
            self.release(node.bytes);
        }
    }

    fn declare(&self, node: &mut Node, device: &str, payload: &[u8]) {
        let room = self.max_bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        let known = Arc::make_mut(&mut node.metrics);
        // What does not fit is not known; its data by alias become dead letters.
        if let Ok((taken, _)) = known.declare(device, payload, room) {
            self.bytes.fetch_add(taken, Ordering::Relaxed);
            node.bytes += taken;
        }
    }

    fn reserve(&self, bytes: usize) -> bool {
        if self.bytes.load(Ordering::Relaxed) + bytes > self.max_bytes {
            return false;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::sparkplug_rebirth;

    /// A payload with this seq, and a metric `bdSeq` of that value.
    fn payload(seq: u8, bd_seq: Option<u8>) -> Vec<u8> {
        let mut payload = vec![0x18, seq & 0x7f | 0x80, seq >> 7];
        if let Some(bd_seq) = bd_seq {
            payload.extend([0x12, 11, 0x0a, 5]);
            payload.extend(b"bdSeq");
            payload.extend([0x20, 8, 0x58, bd_seq]);
        }
        payload
    }

    fn hear(nodes: &EdgeNodes, topic: &str, payload: &[u8], now_s: i64) -> bool {
        let topic = SparkplugTopic::parse(topic).unwrap();
        nodes.hear(topic, payload, now_s * 1_000_000, &mut String::new()).ask
    }

    #[test]
    fn gaps_and_missing_births_ask_once_in_a_while() {
        let nodes = EdgeNodes::new();
        let node = |kind: &str| format!("spBv1.0/g/{kind}/e");
        let device = |kind: &str| format!("spBv1.0/g/{kind}/e/d");
        assert!(hear(&nodes, &node("NDATA"), &payload(9, None), 0), "data before birth");
        assert!(!hear(&nodes, &node("NDATA"), &payload(10, None), 9), "asked already");
        assert!(hear(&nodes, &node("NDATA"), &payload(11, None), 10));
        assert!(!hear(&nodes, &node("NBIRTH"), &payload(255, Some(4)), 20));
        assert!(!hear(&nodes, &node("NDATA"), &payload(0, None), 21), "255 is followed by 0");
        assert!(hear(&nodes, &device("DDATA"), &payload(1, None), 22), "a device without a birth");
        assert!(!hear(&nodes, &device("DBIRTH"), &payload(2, None), 40));
        assert!(!hear(&nodes, &device("DDATA"), &payload(3, None), 41));
        assert!(hear(&nodes, &device("DDATA"), &payload(5, None), 42), "a gap");
        assert!(!hear(&nodes, &device("DDATA"), &payload(6, None), 60));
        assert!(!hear(&nodes, &node("NDEATH"), &payload(0, Some(3)), 61), "of an earlier connection");
        assert!(!hear(&nodes, &device("DDATA"), &payload(7, None), 62));
        assert!(!hear(&nodes, &node("NDEATH"), &payload(0, Some(4)), 63));
        assert!(hear(&nodes, &device("DDATA"), &payload(8, None), 64), "after its death");
        assert!(!hear(&nodes, &node("NCMD"), &sparkplug_rebirth(1), 90));
        assert!(!hear(&nodes, &node("NDATA"), b"\x18", 90), "malformed");
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let nodes = EdgeNodes { max_bytes: 2000, ..EdgeNodes::new() };
        for at in 0..100 {
            hear(&nodes, &format!("spBv1.0/g/NBIRTH/e{at}"), &payload(0, Some(1)), 0);
            hear(&nodes, &format!("spBv1.0/g/DBIRTH/e{at}/d"), &payload(1, Some(1)), 0);
            hear(&nodes, &format!("spBv1.0/g/DDEATH/e{at}/d"), &payload(2, None), 0);
        }
        let taken = nodes.bytes.load(Ordering::Relaxed);
        assert!((1000..=2000).contains(&taken), "{taken}");
        assert!(!hear(&nodes, "spBv1.0/g/NDATA/other", &payload(0, None), 0), "nobody is asked in vain");
        for at in 0..100 {
            hear(&nodes, &format!("spBv1.0/g/NBIRTH/e{at}"), &payload(0, Some(2)), 0);
            hear(&nodes, &format!("spBv1.0/g/NDEATH/e{at}"), &payload(0, Some(2)), 0);
        }
        assert_eq!(nodes.bytes.load(Ordering::Relaxed), 0);
    }
}
