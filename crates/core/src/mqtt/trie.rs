//! The topic trie: from a topic name to the values of all filters that match it.
//!
//! One structure serves subscriptions and streams. A filter without wildcards is one node, found by one hash
//! of the whole topic; filters with wildcards share a tree with a node for each level. All edges live in one
//! open-addressing table keyed by (parent, level), so that a node needs no map of its own: a million private
//! filters cost about 130 bytes each. Matching allocates nothing and looks at no filter that shares no prefix
//! with the topic.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::topic;

/// A filter's place in the trie, valid as long as the filter holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic filter has more than {} levels", topic::MAX_LEVELS)]
pub struct TooDeep;

const NONE: u32 = u32::MAX;
/// Parent of the first levels of filters with wildcards.
const ROOT: u32 = 0;
/// Parent of all filters without wildcards; their "level" is the whole filter.
const EXACT: u32 = 1;

#[derive(Debug)]
pub struct Trie<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    /// Literal edges: linear probing, a power of two long.
    table: Vec<Slot>,
    edges: usize,
    seed: u64,
    values: usize,
}

#[derive(Debug)]
struct Node<T> {
    level: Box<[u8]>,
    values: Values<T>,
    parent: u32,
    hash: u32,
    /// Child for the level `+`.
    plus: u32,
    /// Child for the level `#`.
    multi: u32,
    /// Number of literal children.
    literals: u32,
    /// The literal child, where it is the only one and known: compared without a hash.
    only: u32,
    edge: Edge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Literal,
    Plus,
    Multi,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    node: u32,
}

const EMPTY: Slot = Slot { hash: 0, node: NONE };

/// The values of one filter. Most filters have one; a filter with a hundred thousand loses one in log n.
#[derive(Debug)]
enum Values<T> {
    None,
    One(T),
    // Boxed, since a set is three times as big as the value that most filters have.
    #[allow(clippy::box_collection)]
    Many(Box<BTreeSet<T>>),
}

impl<T: Ord> Trie<T> {
    /// `seed` keeps clients from choosing levels whose hashes collide; any random number will do.
    pub fn new(seed: u64) -> Trie<T> {
        let root = |edge| Node {
            level: Box::default(),
            values: Values::None,
            parent: NONE,
            hash: 0,
            plus: NONE,
            multi: NONE,
            literals: 0,
            only: NONE,
            edge,
        };
        Trie {
            nodes: vec![root(Edge::Plus), root(Edge::Plus)],
            free: Vec::new(),
            table: vec![EMPTY; 16],
            edges: 0,
            seed,
            values: 0,
        }
    }

    /// Makes room for so many filters, which are about to come.
    pub fn reserve(&mut self, filters: usize) {
        self.nodes.reserve(filters);
        while (self.edges + filters) * 4 > self.table.len() * 3 {
            self.grow();
        }
    }

    /// Number of (filter, value) pairs.
    pub fn len(&self) -> usize {
        self.values
    }

    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Adds `value` to a valid filter; gives its place and the equal value that it replaced.
    pub fn insert(&mut self, filter: &str, value: T) -> Result<(NodeId, Option<T>), TooDeep> {
        let node = if topic::has_wildcard(filter) {
            if topic::levels(filter) > topic::MAX_LEVELS {
                return Err(TooDeep);
            }
            filter.split('/').fold(ROOT, |parent, level| match level {
                "+" => self.wild_child(parent, Edge::Plus),
                "#" => self.wild_child(parent, Edge::Multi),
                literal => self.literal_child(parent, literal.as_bytes()),
            })
        } else {
            self.literal_child(EXACT, filter.as_bytes())
        };
        let replaced = self.nodes[node as usize].values.insert(value);
        self.values += usize::from(replaced.is_none());
        Ok((NodeId(node), replaced))
    }

    /// The place of a filter, if any value stands there.
    pub fn find(&self, filter: &str) -> Option<NodeId> {
        let node = if topic::has_wildcard(filter) {
            filter.split('/').try_fold(ROOT, |parent, level| {
                let parent_node = &self.nodes[parent as usize];
                let child = match level {
                    "+" => parent_node.plus,
                    "#" => parent_node.multi,
                    literal => self.lookup(parent, literal.as_bytes()),
                };
                (child != NONE).then_some(child)
            })?
        } else {
            self.lookup(EXACT, filter.as_bytes())
        };
        let found = self.nodes.get(node as usize)?;
        (!matches!(found.values, Values::None)).then_some(NodeId(node))
    }

    pub fn remove(&mut self, filter: &str, value: &T) -> Option<T> {
        let node = self.find(filter)?;
        self.remove_at(node, value)
    }

    /// Removes the value equal to `value` and prunes what no filter needs any more.
    pub fn remove_at(&mut self, NodeId(node): NodeId, value: &T) -> Option<T> {
        let removed = self.nodes.get_mut(node as usize)?.values.remove(value)?;
        self.values -= 1;
        self.prune(node);
        Some(removed)
    }

    /// Puts what `change` makes of the value equal to `value` in its place; it must be equal to it too.
    pub fn change_at(&mut self, NodeId(node): NodeId, value: &T, change: impl FnOnce(T) -> T) {
        let Some(node) = self.nodes.get_mut(node as usize) else { return };
        if let Some(found) = node.values.remove(value) {
            node.values.insert(change(found));
        }
    }

    /// The value equal to `value` at this place.
    pub fn value_at(&self, NodeId(node): NodeId, value: &T) -> Option<&T> {
        match &self.nodes.get(node as usize)?.values {
            Values::One(found) if found == value => Some(found),
            Values::Many(found) => found.get(value),
            _ => None,
        }
    }

    /// The filter of a place.
    pub fn filter(&self, NodeId(mut node): NodeId) -> String {
        let mut levels = Vec::new();
        while let Some(found) = self.nodes.get(node as usize).filter(|_| node != ROOT && node != EXACT) {
            levels.push(match found.edge {
                Edge::Literal => String::from_utf8_lossy(&found.level),
                Edge::Plus => "+".into(),
                Edge::Multi => "#".into(),
            });
            node = found.parent;
        }
        levels.reverse();
        levels.join("/")
    }

    /// Calls `visit` with every value of every filter that matches the topic name, in no particular order.
    /// Gives the number of filters that matched: with at most one, no value is visited twice.
    #[inline]
    pub fn matches(&self, topic: &str, mut visit: impl FnMut(&T)) -> usize {
        if self.values == 0 {
            return 0;
        }
        let topic = topic.as_bytes();
        let mut filters = 0;
        if self.nodes[EXACT as usize].literals > 0 {
            let exact = self.lookup(EXACT, topic);
            if exact != NONE {
                filters += self.visit(exact, &mut visit);
            }
        }
        let root = &self.nodes[ROOT as usize];
        if root.literals > 0 || root.plus != NONE || root.multi != NONE {
            // Section 4.7.2: a wildcard in the first place does not reach topics that start with `$`.
            filters += if topic.first() == Some(&b'$') {
                let (level, rest) = split(topic);
                match self.lookup(ROOT, level) {
                    NONE => 0,
                    child => self.walk(child, rest, &mut visit),
                }
            } else {
                self.walk(ROOT, Some(topic), &mut visit)
            };
        }
        filters
    }

    /// `rest`: the levels below `node`; `None`: the topic ends here. Recursion is as deep as the deepest filter.
    fn walk(&self, node: u32, rest: Option<&[u8]>, visit: &mut impl FnMut(&T)) -> usize {
        let here = &self.nodes[node as usize];
        // `foo/#` matches `foo` and everything below.
        let mut filters = if here.multi != NONE { self.visit(here.multi, visit) } else { 0 };
        let Some(rest) = rest else {
            return filters + self.visit(node, visit);
        };
        if here.plus == NONE && here.literals == 0 {
            return filters;
        }
        let (level, below) = split(rest);
        if here.plus != NONE {
            filters += self.walk(here.plus, below, visit);
        }
        if here.literals > 0 {
            let child = self.literal_below(node, here, level);
            if child != NONE {
                filters += self.walk(child, below, visit);
            }
        }
        filters
    }

    #[inline]
    fn literal_below(&self, parent: u32, node: &Node<T>, level: &[u8]) -> u32 {
        if node.only == NONE {
            return self.lookup(parent, level);
        }
        if *self.nodes[node.only as usize].level == *level { node.only } else { NONE }
    }

    fn visit(&self, node: u32, visit: &mut impl FnMut(&T)) -> usize {
        match &self.nodes[node as usize].values {
            Values::None => return 0,
            Values::One(value) => visit(value),
            Values::Many(values) => values.iter().for_each(visit),
        }
        1
    }

    fn hash(&self, parent: u32, level: &[u8]) -> u32 {
        xxh3_64_with_seed(
            level,
            self.seed.wrapping_add(u64::from(parent).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        ) as u32
    }

    fn lookup(&self, parent: u32, level: &[u8]) -> u32 {
        let hash = self.hash(parent, level);
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.table[at];
            if slot.node == NONE {
                return NONE;
            }
            if slot.hash == hash {
                let node = &self.nodes[slot.node as usize];
                if node.parent == parent && *node.level == *level {
                    return slot.node;
                }
            }
            at = (at + 1) & mask;
        }
    }

    fn literal_child(&mut self, parent: u32, level: &[u8]) -> u32 {
        let found = self.lookup(parent, level);
        if found != NONE {
            return found;
        }
        // At most three quarters full, so that probing ends soon.
        if (self.edges + 1) * 4 > self.table.len() * 3 {
            self.grow();
        }
        let hash = self.hash(parent, level);
        let node = self.add(parent, Edge::Literal, level, hash);
        let above = &mut self.nodes[parent as usize];
        above.literals += 1;
        above.only = if above.literals == 1 { node } else { NONE };
        self.edges += 1;
        place(&mut self.table, Slot { hash, node });
        node
    }

    fn wild_child(&mut self, parent: u32, edge: Edge) -> u32 {
        let of = |node: &Node<T>| if edge == Edge::Plus { node.plus } else { node.multi };
        let found = of(&self.nodes[parent as usize]);
        if found != NONE {
            return found;
        }
        let node = self.add(parent, edge, &[], 0);
        let parent = &mut self.nodes[parent as usize];
        match edge {
            Edge::Plus => parent.plus = node,
            _ => parent.multi = node,
        }
        node
    }

    fn add(&mut self, parent: u32, edge: Edge, level: &[u8], hash: u32) -> u32 {
        let values = Values::None;
        let level = level.into();
        let node =
            Node { level, values, parent, hash, plus: NONE, multi: NONE, literals: 0, only: NONE, edge };
        if let Some(id) = self.free.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    fn prune(&mut self, mut node: u32) {
        loop {
            let gone = &mut self.nodes[node as usize];
            let needed = !matches!(gone.values, Values::None)
                || gone.literals > 0
                || gone.plus != NONE
                || gone.multi != NONE
                || gone.parent == NONE;
            if needed {
                return;
            }
            gone.level = Box::default();
            let (parent, edge, hash) = (gone.parent, gone.edge, gone.hash);
            let above = &mut self.nodes[parent as usize];
            match edge {
                Edge::Plus => above.plus = NONE,
                Edge::Multi => above.multi = NONE,
                Edge::Literal => {
                    above.literals -= 1;
                    above.only = NONE;
                    self.edges -= 1;
                    displace(&mut self.table, hash, node);
                }
            }
            self.free.push(node);
            node = parent;
        }
    }

    fn grow(&mut self) {
        let mut table = vec![EMPTY; self.table.len() * 2];
        self.table.iter().filter(|slot| slot.node != NONE).for_each(|&slot| place(&mut table, slot));
        self.table = table;
    }
}

/// First level and what is below it.
#[inline]
fn split(topic: &[u8]) -> (&[u8], Option<&[u8]>) {
    // Levels are short: a plain loop is through before a vectorised search has begun.
    match topic.iter().position(|byte| *byte == b'/') {
        Some(at) => (&topic[..at], Some(&topic[at + 1..])),
        None => (topic, None),
    }
}

fn place(table: &mut [Slot], slot: Slot) {
    let mask = table.len() - 1;
    let mut at = slot.hash as usize & mask;
    while table[at].node != NONE {
        at = (at + 1) & mask;
    }
    table[at] = slot;
}

/// Takes `node` out and moves later members of its run up, so that no tombstones pile up.
fn displace(table: &mut [Slot], hash: u32, node: u32) {
    let mask = table.len() - 1;
    let mut hole = hash as usize & mask;
    while table[hole].node != node {
        hole = (hole + 1) & mask;
    }
    let mut at = hole;
    loop {
        at = (at + 1) & mask;
        let slot = table[at];
        if slot.node == NONE {
            break;
        }
        // It may move up only if its own first place is not between the hole and where it stands.
        let home = slot.hash as usize & mask;
        if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
            table[hole] = slot;
            hole = at;
        }
    }
    table[hole] = EMPTY;
}

impl<T: Ord> Values<T> {
    fn insert(&mut self, value: T) -> Option<T> {
        match std::mem::replace(self, Values::None) {
            Values::None => {
                *self = Values::One(value);
                None
            }
            Values::One(old) if old == value => {
                *self = Values::One(value);
                Some(old)
            }
            Values::One(old) => {
                *self = Values::Many(Box::new(BTreeSet::from([old, value])));
                None
            }
            Values::Many(mut values) => {
                let replaced = values.replace(value);
                *self = Values::Many(values);
                replaced
            }
        }
    }

    fn remove(&mut self, value: &T) -> Option<T> {
        match std::mem::replace(self, Values::None) {
            Values::One(old) if old == *value => Some(old),
            Values::Many(mut values) => {
                let removed = values.take(value);
                // A set of one goes back to the small form.
                *self = match values.len() {
                    0 | 1 => values.pop_first().map_or(Values::None, Values::One),
                    _ => Values::Many(values),
                };
                removed
            }
            other => {
                *self = other;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn hits(trie: &Trie<u32>, topic: &str) -> Vec<u32> {
        let mut found = Vec::new();
        trie.matches(topic, |value| found.push(*value));
        found.sort_unstable();
        found
    }

    #[test]
    fn every_kind_of_filter_is_found() {
        let mut trie = Trie::new(7);
        let filters = ["a/b/c", "a/+/c", "a/#", "#", "+/b/#", "a/b", "a/b/c/#", "$SYS/#", "$SYS/x", "+"];
        for (value, filter) in filters.iter().enumerate() {
            trie.insert(filter, value as u32).unwrap();
        }
        assert_eq!(hits(&trie, "a/b/c"), [0, 1, 2, 3, 4, 6]);
        assert_eq!(hits(&trie, "a"), [2, 3, 9]);
        assert_eq!(hits(&trie, "$SYS/x"), [7, 8]);
        assert_eq!(hits(&trie, "$SYS"), [7]);
        assert_eq!(hits(&trie, ""), [3, 9]);
    }

    #[test]
    fn removal_gives_every_node_back() {
        let mut trie = Trie::new(7);
        let filters: Vec<_> = (0..2000).map(|i| format!("dev/{i}/{}", ["x/y", "+/z", "#"][i % 3])).collect();
        for round in 0..2 {
            for (value, filter) in filters.iter().enumerate() {
                trie.insert(filter, value as u32).unwrap();
                trie.insert(filter, 9999).unwrap();
            }
            assert_eq!(trie.len(), 4000);
            for (value, filter) in filters.iter().enumerate() {
                assert_eq!(trie.remove(filter, &(value as u32)), Some(value as u32), "round {round}");
                assert_eq!(trie.remove(filter, &9999), Some(9999));
                assert_eq!(trie.remove(filter, &9999), None);
            }
            assert!(trie.is_empty());
            assert_eq!(trie.nodes.len(), trie.free.len() + 2, "round {round}");
            assert!(trie.table.iter().all(|slot| slot.node == NONE));
        }
    }

    #[test]
    fn a_place_tells_its_filter_and_its_value() {
        let mut trie = Trie::new(5);
        for (value, filter) in
            ["a", "a/b", "", "/", "+", "#", "a/+/b/#", "/+/", "+/a"].into_iter().enumerate()
        {
            let (node, _) = trie.insert(filter, value).unwrap();
            trie.insert(filter, value + 100).unwrap();
            assert_eq!(trie.filter(node), filter);
            assert_eq!(trie.value_at(node, &(value + 100)), Some(&(value + 100)));
            assert_eq!(trie.value_at(node, &999), None);
        }
    }

    #[test]
    fn a_filter_too_deep_is_refused() {
        let deep = vec!["+"; topic::MAX_LEVELS + 1].join("/");
        assert_eq!(Trie::new(1).insert(&deep, 1u32), Err(TooDeep));
        let topic = vec!["x"; 30_000].join("/");
        let mut trie = Trie::new(1);
        trie.insert(&deep[2..], 1u32).unwrap();
        assert_eq!(hits(&trie, &topic), [0u32; 0]);
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "b", "ab", "$x", "+", "{a}"])
    }

    fn filter() -> impl Strategy<Value = String> {
        (prop::collection::vec(level(), 1..5), any::<bool>()).prop_map(|(mut levels, multi)| {
            if multi {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn matches_as_the_definition_says(
            changes in prop::collection::vec((filter(), 0u32..4, any::<bool>()), 1..60),
            topics in prop::collection::vec(prop::collection::vec(level(), 1..6), 1..10),
        ) {
            let mut trie = Trie::new(3);
            let mut naive: BTreeMap<(String, u32), ()> = BTreeMap::new();
            for (filter, value, remove) in changes {
                prop_assume!(topic::is_filter(&filter));
                if remove {
                    let expected = naive.remove(&(filter.clone(), value)).map(|()| value);
                    prop_assert_eq!(trie.remove(&filter, &value), expected);
                } else {
                    let replaced = naive.insert((filter.clone(), value), ()).map(|()| value);
                    prop_assert_eq!(trie.insert(&filter, value).unwrap().1, replaced);
                    prop_assert!(trie.find(&filter).is_some());
                }
            }
            prop_assert_eq!(trie.len(), naive.len());
            for levels in topics {
                let topic = levels.join("/").replace('+', "p");
                let mut expected: Vec<u32> =
                    naive.keys().filter(|(f, _)| topic::matches(f, &topic)).map(|(_, value)| *value).collect();
                expected.sort_unstable();
                prop_assert_eq!(hits(&trie, &topic), expected, "{}", topic);
            }
        }
    }
}
