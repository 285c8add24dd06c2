//! Layers of very many entries. Nothing here measures time: a program that needs more than linear time does not end within
//! the bound of the test runner.

use std::io::{self, Read};

use kiln_archive::EntryType;
use kiln_rootfs::{Layers, Limits, Tree};
use tar::Header;

use crate::builder::Tar;
use crate::image::spool;

/// An archive that is made while it is read, one part after the other.
struct Parts<F> {
    count: u64,
    next: u64,
    part: F,
    buffer: Vec<u8>,
    at: usize,
}

fn parts<F: FnMut(u64) -> Vec<u8>>(count: u64, part: F) -> Parts<F> {
    Parts { count, next: 0, part, buffer: Vec::new(), at: 0 }
}

impl<F: FnMut(u64) -> Vec<u8>> Read for Parts<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            if self.next > self.count {
                return Ok(0);
            }
            self.buffer = if self.next == self.count { vec![0; 1024] } else { (self.part)(self.next) };
            (self.at, self.next) = (0, self.next + 1);
        }
        let count = buffer.len().min(self.buffer.len() - self.at);
        buffer[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// A header whose name is written over that of a header which was made before, since making one takes longer than
/// reading it.
struct Template {
    header: Header,
    sum: u32,
}

impl Template {
    fn new(kind: EntryType, change: impl FnOnce(&mut Header)) -> Self {
        let bytes = Tar::new().member(kind, "", b"", change).open_end();
        let mut header = Header::from_byte_slice(&bytes).clone();
        header.as_old_mut().cksum = *b"        ";
        let sum = header.as_bytes().iter().copied().map(u32::from).sum();
        Self { header, sum }
    }

    fn named(&self, name: &str) -> Vec<u8> {
        let mut header = self.header.clone();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let sum = self.sum + name.bytes().map(u32::from).sum::<u32>();
        header.as_old_mut().cksum.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.as_bytes().to_vec()
    }
}

fn names(tree: &Tree) -> usize {
    tree.children(Tree::ROOT).expect("the root").len()
}

#[test]
fn a_million_names_in_one_directory_are_made_and_a_quarter_removed() {
    const COUNT: u64 = 1_000_000;
    const REMOVED: u64 = 250_000;
    let fifo = Template::new(EntryType::Fifo, |_| {});
    let mut layers = Layers::new(spool(), Limits::default());
    // Not in order, so that each is put between others.
    let scattered = |at: u64| at.wrapping_mul(0x9e37_79b9) % (1 << 32);
    let report =
        layers.apply(parts(COUNT, |at| fifo.named(&format!("{:x}", scattered(at))))).expect("they are few enough");
    assert_eq!(report.entries, COUNT);
    let mark = Template::new(EntryType::Regular, |_| {});
    let report = layers.apply(parts(REMOVED, |at| mark.named(&format!(".wh.{:x}", scattered(at))))).expect("marks");
    assert_eq!(report.marks, REMOVED);
    let (tree, _spool, _notes) = layers.finish();
    assert_eq!(names(&tree) as u64, COUNT - REMOVED);
    assert_eq!(tree.len() as u64, COUNT + 1, "a mark has no node");
}

#[test]
fn a_parent_for_each_of_many_files_counts_as_an_entry() {
    const COUNT: u64 = 100_000;
    let fifo = Template::new(EntryType::Fifo, |_| {});
    let apply = |limits| {
        let mut layers = Layers::new(spool(), limits);
        layers.apply(parts(COUNT, |at| fifo.named(&format!("{at}/f")))).map(|_| layers)
    };
    let limits = Limits { entries_max: 2 * COUNT, ..Limits::default() };
    assert_eq!(names(&apply(limits).expect("just enough").finish().0) as u64, COUNT);
    let error = apply(Limits { entries_max: 2 * COUNT - 1, ..limits }).expect_err("one too many");
    assert!(error.to_string().contains("more than 199999 entries"), "{error}");
}

#[test]
fn a_deep_path_for_each_of_many_files_is_walked_once() {
    const COUNT: u64 = 100_000;
    let fifo = Template::new(EntryType::Fifo, |_| {});
    let deep = "d/".repeat(40);
    let mut layers = Layers::new(spool(), Limits::default());
    // Two directories in turns, so that the last parent is never the same.
    layers.apply(parts(COUNT, |at| fifo.named(&format!("{deep}{}/{at}", at % 2)))).expect("they are few enough");
    assert_eq!(layers.finish().0.len() as u64, COUNT + 43);
}

#[test]
fn a_chain_of_hard_links_ends_at_one_node() {
    const COUNT: u64 = 100_000;
    let mut layers = Layers::new(spool(), Limits::default());
    let link = |at: u64| {
        let tar = Tar::new();
        let tar = if at == 0 { tar.file("0", b"") } else { tar.hard_link(&at.to_string(), &(at - 1).to_string()) };
        tar.open_end()
    };
    layers.apply(parts(COUNT, link)).expect("they are few enough");
    let (tree, _spool, _notes) = layers.finish();
    let children = tree.children(Tree::ROOT).expect("the root");
    assert_eq!((children.len() as u64, tree.len()), (COUNT, 2));
    let first = children.values().next();
    assert!(children.values().all(|id| Some(id) == first));
}

#[test]
fn symlinks_that_multiply_the_length_of_paths_end_at_a_limit() {
    // Each of 39 symlinks leads to the next one by a way of 2000 names.
    let way = "./".repeat(2000);
    let links =
        (0..39).fold(Tar::new().dir("l39"), |tar, at| tar.symlink(&format!("l{at}"), &format!("{way}l{}", at + 1)));
    let files = (0..100).fold(links, |tar, at| tar.fifo(&format!("l0/{at}/f")));
    let mut layers = Layers::new(spool(), Limits { link_names_max: 1_000_000, ..Limits::default() });
    let error = layers.apply(files.end().as_slice()).expect_err("each path has 78,000 names");
    assert!(error.to_string().contains("`l0/12/f`: the paths pass symlinks with more than 1000000 names"), "{error}");
}

#[test]
fn a_file_full_of_zeros_costs_nothing() {
    const MIB: u64 = 1 << 20;
    let header = Template::new(EntryType::Regular, |header| header.set_size(256 * MIB)).named("zeros");
    let mut layers = Layers::new(spool(), Limits::default());
    let zeros = parts(257, |at| if at == 0 { header.clone() } else { vec![0; 1 << 20] });
    assert_eq!(layers.apply(zeros).expect("it is small enough").bytes, 256 * MIB + 512 + 1024);
    assert_eq!(layers.finish().1.bytes(), 0);
}
