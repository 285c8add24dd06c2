//! Compares chains of diffs with a model: whatever a guest writes and wherever it is saved, each link holds the memory
//! of its moment.

use std::process;

use camino::Utf8PathBuf;
use proptest::collection::vec;
use proptest::prelude::*;

use super::page_file::PageFileWriter;
use super::save::SavedPages;
use super::testing::{Here, Memory, Page, here, pattern, zeros};
use super::{ChainMemory, Mapping, MemoryError, PAGE_BYTES, apply, flatten, own_pages, save};

/// More than a batch, so that some tests have several batches.
const GUEST_PAGES: u64 = 300;
const GUEST_BYTES: u64 = GUEST_PAGES * PAGE_BYTES as u64;

/// A step of a guest or of its owner.
#[derive(Debug, Clone)]
enum Step {
    /// The guest writes `count` pages from `page` on. Content 0 is zeros.
    Write { page: u64, count: u64, content: u64 },
    /// The guest writes the root's content of the page back.
    Undo { page: u64 },
    /// The guest gives the page back, so it is the root's again.
    Discard { page: u64 },
    /// The guest is saved as a new link.
    Save,
    /// The guest continues as a fork of one of the links.
    Fork { link: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..GUEST_PAGES;
    let write = (page(), prop_oneof![4 => 1_u64..6, 1 => 1..GUEST_PAGES], 0_u64..4);
    prop_oneof![
        6 => write.prop_map(|(page, count, content)| Step::Write { page, count, content }),
        2 => page().prop_map(|page| Step::Undo { page }),
        1 => page().prop_map(|page| Step::Discard { page }),
        3 => Just(Step::Save),
        2 => any::<prop::sample::Index>().prop_map(|link| Step::Fork { link }),
    ]
}

/// Half of the root is zeros.
fn root_page(page: u64) -> Page {
    if page.is_multiple_of(2) { zeros() } else { pattern(page % 4) }
}

fn content(number: u64) -> Page {
    if number == 0 { zeros() } else { pattern(number) }
}

/// A saved link: its diffs, and the memory of its moment.
#[derive(Debug, Clone)]
struct Link {
    diffs: Vec<Utf8PathBuf>,
    model: Vec<Page>,
}

/// A guest, its snapshots, and the model of both.
struct Guest {
    home: Here,
    root: Utf8PathBuf,
    memory: Memory,
    model: Vec<Page>,
    parent: Link,
    links: Vec<Link>,
}

impl Guest {
    fn start() -> Self {
        let home = here();
        let model = (0..GUEST_PAGES).map(root_page).collect::<Vec<_>>();
        let root = home.root(&model);
        let link = Link { diffs: Vec::new(), model: model.clone() };
        Self { home, memory: Memory::map(&root), root, model, parent: link.clone(), links: vec![link] }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { page, count, content: number } => {
                (page..GUEST_PAGES.min(page + count)).for_each(|page| self.write(page, content(number)));
            }
            Step::Undo { page } => self.write(page, root_page(page)),
            Step::Discard { page } => {
                self.memory.discard(page);
                self.model[page as usize] = root_page(page);
            }
            Step::Save => drop(self.save()),
            Step::Fork { ref link } => self.fork(&link.get(&self.links).clone()),
        }
    }

    fn write(&mut self, page: u64, content: Page) {
        self.memory.write(page, &content);
        self.model[page as usize] = content;
    }

    fn save(&mut self) -> SavedPages {
        let path = self.home.path(&format!("pages-{}", self.links.len()));
        let own = own_pages(process::id(), self.memory.mapping()).expect("reads");
        let parent = self.chain(&self.parent);
        let saved = save(process::id(), self.memory.mapping(), &own, &parent, &path).expect("saved");
        assert_eq!(std::fs::metadata(&path).expect("is there").len(), saved.bytes);
        self.parent = Link { diffs: [&self.parent.diffs[..], &[path]].concat(), model: self.model.clone() };
        self.links.push(self.parent.clone());
        saved
    }

    fn fork(&mut self, link: &Link) {
        self.memory = self.restored(link);
        self.model.clone_from(&link.model);
        self.parent = link.clone();
    }

    fn restored(&self, link: &Link) -> Memory {
        let memory = Memory::map(&self.root);
        apply(process::id(), memory.mapping(), &self.chain(link)).expect("applied");
        memory
    }

    fn flattened(&self, link: &Link) -> Vec<u8> {
        let path = self.home.path("flat");
        flatten(&self.chain(link), &path).expect("flattened");
        let content = std::fs::read(&path).expect("reads");
        std::fs::remove_file(&path).expect("removed");
        content
    }

    fn chain(&self, link: &Link) -> ChainMemory {
        ChainMemory::open(&self.root, &link.diffs, GUEST_BYTES).expect("opens")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn each_link_of_a_chain_has_the_memory_of_its_moment(steps in vec(step(), 1..40)) {
        let mut guest = Guest::start();
        steps.iter().for_each(|step| guest.take(step));
        guest.save();
        prop_assert!(guest.memory.holds(&guest.model), "saving changes nothing");
        for (number, link) in guest.links.iter().enumerate() {
            prop_assert!(guest.restored(link).holds(&link.model), "link {} is restored", number);
            prop_assert!(guest.flattened(link) == link.model.as_flattened(), "link {} is flattened", number);
        }
    }
}

#[test]
fn a_fork_of_a_diff_saves_only_the_pages_that_it_changed() {
    let mut guest = Guest::start();
    (0..200).for_each(|page| guest.write(page, pattern(1000 + page)));
    let first = guest.save();
    assert_eq!((first.own, first.changed, first.zero), (200, 200, 0));
    guest.fork(&guest.parent.clone());
    guest.write(7, pattern(1));
    guest.write(8, pattern(1008));
    guest.write(9, zeros());
    guest.write(250, root_page(250));
    let second = guest.save();
    assert_eq!((second.own, second.changed, second.zero), (201, 2, 1));
    assert_eq!(second.bytes, 2 * 4096 + 2 * 8);
}

#[test]
fn a_guest_that_wrote_nothing_has_an_empty_diff() {
    let mut guest = Guest::start();
    assert!(guest.memory.holds(&guest.model));
    assert_eq!(guest.save(), SavedPages { own: 0, changed: 0, zero: 0, bytes: 4096 });
}

#[test]
fn a_page_given_back_is_the_roots_again() {
    let mut guest = Guest::start();
    guest.write(3, pattern(77));
    guest.save();
    guest.take(&Step::Discard { page: 3 });
    let saved = guest.save();
    assert_eq!((saved.own, saved.changed), (0, 1));
    assert!(guest.restored(&guest.parent).page(3) == root_page(3));
}

#[test]
fn memory_of_another_size_is_refused() {
    let guest = Guest::start();
    let mapping = Mapping { bytes: GUEST_BYTES - 4096, ..guest.memory.mapping() };
    let chain = guest.chain(&guest.parent);
    let error = apply(process::id(), mapping, &chain).expect_err("is smaller");
    assert!(matches!(error, MemoryError::OtherSize { .. }));
    let error = save(process::id(), mapping, &[], &chain, &guest.home.path("x")).expect_err("is smaller");
    assert!(matches!(error, MemoryError::OtherSize { .. }));
}

#[test]
fn missing_memory_is_an_error() {
    let mut guest = Guest::start();
    guest.write(3, pattern(77));
    guest.save();
    let nothing = Mapping { start: 0x1000, ..guest.memory.mapping() };
    let (chain, path) = (guest.chain(&guest.parent), guest.home.path("x"));
    let error = apply(process::id(), nothing, &chain).expect_err("is not there");
    assert!(matches!(error, MemoryError::Process { .. }));
    let own = [0..2, 5..6];
    let error = save(process::id(), nothing, &own, &chain, &path).expect_err("is not there");
    assert!(matches!(error, MemoryError::Process { .. }));
    let error = ChainMemory::open(&guest.root, &[path], GUEST_BYTES).expect_err("was not finished");
    assert!(matches!(error, MemoryError::Broken { .. }));
}

#[test]
fn a_full_disk_is_reported_as_no_space() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("opens");
    let mut writer = PageFileWriter::new(full, GUEST_PAGES).expect("not too large");
    writer.push_stored(3);
    let error = writer.write_stored(&pattern(77)).expect_err("is full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}
