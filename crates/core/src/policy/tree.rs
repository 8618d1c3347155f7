//! Many patterns as one tree, so that a match looks at no pattern that shares no prefix with the text.
//!
//! A radix tree over bytes in which `*`, `?` and variables are edges of their own. Without a `*` before the last
//! place a match is one walk down. A `*` is tried at each place behind it; a `*` below another one remembers from
//! where on it has failed, so that the cost is bound by nodes times bytes, whatever patterns and text are.

use std::cell::RefCell;

use super::pattern::Part;

const NONE: u32 = u32::MAX;

/// What a connection has for a variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    /// `None`: nothing, and no pattern with the variable matches.
    pub text: Option<Box<str>>,
    /// It is one topic level. Others are nothing in topics and filters, where they would reach beyond their place:
    /// a client that calls itself `+`, or `a/b` below the topics of `a`.
    pub level: bool,
}

impl Value {
    pub fn new(text: Option<&str>) -> Value {
        let text = text.filter(|text| !text.is_empty());
        let level = text.is_some_and(|text| !text.contains(['/', '+', '#', '\0']));
        Value { text: text.map(Box::from), level }
    }

    pub fn get(&self, levels: bool) -> Option<&str> {
        self.text.as_deref().filter(|_| self.level || !levels)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Symbol {
    Byte(u8),
    One,
    Any,
    Variable(u16),
}

#[derive(Debug)]
struct Node {
    /// Text between the node above and this one.
    text: Box<[u8]>,
    /// A pattern ends here.
    end: bool,
    /// A pattern ends in `*` here: whatever follows matches.
    all: bool,
    /// First bytes of the children with text, in the order of `children`.
    firsts: Box<[u8]>,
    children: Box<[u32]>,
    one: u32,
    any: u32,
    variables: Box<[(u16, u32)]>,
    /// Of a `*` below another: its place in the memory of failures.
    nested: u32,
}

#[derive(Debug)]
pub(super) struct Tree {
    /// The first is the root; none: no pattern.
    nodes: Vec<Node>,
    /// Number of `*` below another.
    nested: u32,
}

thread_local! {
    /// By nested `*`: the least position from which it has failed in the search under way.
    static FAILED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Tree {
    /// `slot`: the place of a variable among a connection's values.
    pub fn new<'a>(
        patterns: impl Iterator<Item = &'a [Part]>,
        mut slot: impl FnMut(&super::Variable) -> u16,
    ) -> Tree {
        let mut symbols: Vec<Vec<Symbol>> = patterns
            .map(|parts| {
                let mut symbols = Vec::new();
                for part in parts {
                    match part {
                        Part::Text(text) => symbols.extend(text.bytes().map(Symbol::Byte)),
                        Part::One => symbols.push(Symbol::One),
                        Part::Any => symbols.push(Symbol::Any),
                        Part::Variable(variable) => symbols.push(Symbol::Variable(slot(variable))),
                    }
                }
                symbols
            })
            .collect();
        symbols.sort_unstable();
        symbols.dedup();
        let mut tree = Tree { nodes: Vec::new(), nested: 0 };
        if !symbols.is_empty() {
            tree.build(&symbols, 0, 0, false);
        }
        tree
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether every text matches.
    pub fn is_all(&self) -> bool {
        self.nodes.first().is_some_and(|root| root.all && root.text.is_empty())
    }

    /// Adds the node for sorted patterns that are equal before `from`; its own text begins at `text`.
    fn build(&mut self, patterns: &[Vec<Symbol>], text: usize, mut from: usize, below_any: bool) -> u32 {
        // As long as all go on with the same byte, the node's text does.
        if let (Some(first), Some(last)) = (patterns.first(), patterns.last()) {
            while let (Some(Symbol::Byte(one)), Some(Symbol::Byte(other))) = (first.get(from), last.get(from))
                && one == other
            {
                from += 1;
            }
        }
        let id = self.nodes.len() as u32;
        let bytes = patterns.first().map_or(&[][..], |pattern| &pattern[text..from]);
        let bytes = bytes.iter().filter_map(|symbol| match symbol {
            Symbol::Byte(byte) => Some(*byte),
            _ => None,
        });
        self.nodes.push(Node {
            text: bytes.collect(),
            end: false,
            all: false,
            firsts: Box::default(),
            children: Box::default(),
            one: NONE,
            any: NONE,
            variables: Box::default(),
            nested: NONE,
        });
        let ends = patterns.iter().filter(|pattern| pattern.len() == from).count();
        let rest = &patterns[ends..];
        let all = rest.iter().any(|pattern| pattern[from] == Symbol::Any && pattern.len() == from + 1);
        let (mut firsts, mut children, mut variables) = (Vec::new(), Vec::new(), Vec::new());
        let (mut one, mut any) = (NONE, NONE);
        // Where everything matches, nothing below can say more.
        for group in rest.chunk_by(|a, b| a[from] == b[from]).filter(|_| !all) {
            match group[0][from] {
                Symbol::Byte(byte) => {
                    firsts.push(byte);
                    children.push(self.build(group, from, from, below_any));
                }
                Symbol::One => one = self.build(group, from + 1, from + 1, below_any),
                Symbol::Any => {
                    any = self.build_any(group, from + 1, below_any);
                }
                Symbol::Variable(slot) => {
                    variables.push((slot, self.build(group, from + 1, from + 1, below_any)));
                }
            }
        }
        let node = &mut self.nodes[id as usize];
        (node.end, node.all) = (ends > 0, all);
        (node.firsts, node.children) = (firsts.into(), children.into());
        (node.one, node.any, node.variables) = (one, any, variables.into());
        id
    }

    /// A `*`: a node without text, from which all its patterns go on.
    fn build_any(&mut self, patterns: &[Vec<Symbol>], from: usize, below_any: bool) -> u32 {
        let nested = if below_any { self.nested } else { NONE };
        self.nested += u32::from(below_any);
        let id = self.build(patterns, from, from, true);
        // Text that all of them share stays with a child, so that the search of the `*` itself has none.
        let node = &mut self.nodes[id as usize];
        if !node.text.is_empty() {
            let first = node.text[0];
            let moved = std::mem::replace(
                node,
                Node {
                    text: Box::default(),
                    end: false,
                    all: false,
                    firsts: Box::new([first]),
                    children: Box::default(),
                    one: NONE,
                    any: NONE,
                    variables: Box::default(),
                    nested: NONE,
                },
            );
            let child = self.nodes.len() as u32;
            self.nodes.push(moved);
            self.nodes[id as usize].children = Box::new([child]);
        }
        self.nodes[id as usize].nested = nested;
        id
    }

    /// Whether one of the patterns matches.
    ///
    /// levels: values that are not one topic level match nothing
    #[inline]
    pub fn matches(&self, text: &str, values: &[Value], levels: bool) -> bool {
        let Some(root) = self.nodes.first() else { return false };
        if self.nested > 0 {
            FAILED.with_borrow_mut(|failed| {
                failed.clear();
                failed.resize(self.nested as usize, NONE);
            });
        }
        let text = text.as_bytes();
        begins(text, &root.text) && Search { tree: self, text, values, levels }.walk(0, root.text.len())
    }
}

struct Search<'a> {
    tree: &'a Tree,
    text: &'a [u8],
    values: &'a [Value],
    levels: bool,
}

impl Search<'_> {
    /// Whether a pattern at or below `node` matches the text from `at` on. Recursion is as deep as patterns have
    /// `*`, `?` and variables.
    fn walk(&self, mut node: u32, mut at: usize) -> bool {
        loop {
            let here = &self.tree.nodes[node as usize];
            if here.all {
                return true;
            }
            let Some(&next) = self.text.get(at) else { return here.end };
            if here.any != NONE && self.any(here.any, at) {
                return true;
            }
            if here.one != NONE && self.below(here.one, at + width(next)) {
                return true;
            }
            for &(slot, child) in &here.variables {
                let value = self.values.get(usize::from(slot)).and_then(|value| value.get(self.levels));
                if let Some(value) = value
                    && begins(&self.text[at..], value.as_bytes())
                    && self.below(child, at + value.len())
                {
                    return true;
                }
            }
            let Some(child) = here.child(next) else { return false };
            let text = &self.tree.nodes[child as usize].text;
            if !begins(&self.text[at..], text) {
                return false;
            }
            (node, at) = (child, at + text.len());
        }
    }

    /// The same for a node whose text is still to be compared.
    fn below(&self, node: u32, at: usize) -> bool {
        let text = &self.tree.nodes[node as usize].text;
        self.text.get(at..).is_some_and(|rest| begins(rest, text)) && self.walk(node, at + text.len())
    }

    /// Tries a `*` that begins at `at`; it has something behind it.
    fn any(&self, node: u32, at: usize) -> bool {
        let here = &self.tree.nodes[node as usize];
        let mut end = self.text.len();
        if here.nested != NONE {
            let failed = FAILED.with_borrow(|failed| failed[here.nested as usize]);
            if failed as usize <= at {
                return false;
            }
            end = end.min(failed as usize);
        }
        let plain = here.one == NONE && here.variables.is_empty();
        for from in at..end {
            let next = self.text[from];
            // Nearly every place is no place for any of its patterns to go on; none lies within a character.
            let may = if plain { here.child(next).is_some() } else { next & 0xc0 != 0x80 };
            if may && self.walk(node, from) {
                return true;
            }
        }
        if here.nested != NONE {
            FAILED.with_borrow_mut(|failed| failed[here.nested as usize] = at as u32);
        }
        false
    }
}

impl Node {
    #[inline]
    fn child(&self, first: u8) -> Option<u32> {
        // Some ten first bytes at most, as a rule: a plain loop is through before a search has begun.
        self.firsts.iter().position(|byte| *byte == first).map(|at| self.children[at])
    }
}

/// `starts_with` for the short texts of a tree: a plain loop is through before the library's comparison, which is
/// made for long ones, has begun.
#[inline]
fn begins(text: &[u8], with: &[u8]) -> bool {
    text.len() >= with.len() && text.iter().zip(with).all(|(one, other)| one == other)
}

/// Bytes of a character of UTF-8, by its first.
fn width(first: u8) -> usize {
    match first {
        0..0xc0 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    }
}
