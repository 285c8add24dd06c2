//! Pages of directories, and the status of a path.

use kiln_wire::{ErrorCode, FileKind, PAYLOAD_MAX, Reply, Text};
use proptest::prelude::*;

use super::{Yard, fifo, link, refused, socket, text};
use crate::files::{LIST_LIMIT_MAX, list, stat};

/// All pages, one after the other.
fn pages(yard: &Yard, limit: Option<u32>) -> Vec<Vec<Text>> {
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = list(&yard.root, &".".into(), after.as_ref(), limit).expect("a page");
        pages.push(page.entries.into_iter().map(|entry| entry.name).collect());
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}

#[test]
fn a_directory_of_several_pages_is_listed_completely_and_in_order() {
    let yard = Yard::new();
    for number in 0..10_001 {
        std::fs::File::create(yard.path(&format!("file-{number}"))).expect("the yard is writable");
    }
    let pages = pages(&yard, None);
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10_000, 1]);
    let all = pages.concat();
    assert!(all.is_sorted_by(|one, two| one < two));
}

#[test]
fn a_page_of_the_longest_names_fits_into_a_frame() {
    let yard = Yard::new();
    for number in 0_u32..3000 {
        // Names that are not UTF-8 are base64 in JSON, which is longer.
        let name = [format!("{number:04}").as_bytes(), &[0xff; 251]].concat();
        std::fs::File::create(yard.directory.path().join(text(&name).as_path())).expect("the yard is writable");
    }
    let page = list(&yard.root, &".".into(), None, None).expect("a page");
    assert!(page.next.is_some() && page.entries.len() > 1000);
    let json = serde_json::to_vec(&Reply::Page(page)).expect("it is JSON");
    assert!(json.len() <= PAYLOAD_MAX, "{}", json.len());
    let all = pages(&yard, None).concat();
    assert_eq!(all.len(), 3000);
    assert!(all.is_sorted_by(|one, two| one < two));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn pages_of_any_size_contain_every_name_once(
        names in prop::collection::btree_set("[a-c\u{ff}.]{1,4}", 0..30),
        limit in 1_u32..9,
    ) {
        let yard = Yard::new();
        let names: Vec<Text> =
            names.into_iter().filter(|name| name != "." && name != "..").map(Text::from).collect();
        for name in &names {
            std::fs::File::create(yard.directory.path().join(name.as_path())).expect("the yard is writable");
        }
        let pages = pages(&yard, Some(limit));
        prop_assert!(pages.iter().all(|page| page.len() <= limit as usize));
        prop_assert_eq!(pages.concat(), names);
    }
}

#[test]
fn limits_outside_their_range_are_refused() {
    let yard = Yard::new();
    for limit in [0, LIST_LIMIT_MAX + 1, u32::MAX] {
        let message = refused(list(&yard.root, &".".into(), None, Some(limit)), ErrorCode::InvalidRequest);
        assert!(message.contains(&limit.to_string()), "{message}");
    }
    yard.plant("f", "");
    refused(list(&yard.root, &"f".into(), None, None), ErrorCode::NotADirectory);
    refused(list(&yard.root, &"none".into(), None, None), ErrorCode::NotFound);
}

#[test]
fn entries_have_their_kind() {
    let yard = Yard::new();
    yard.plant("f", "12345");
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    fifo(&yard.path("p"));
    let _listener = socket(&yard.path("s"));
    link("nowhere", yard.path("l"));
    let page = list(&yard.root, &"/".into(), None, None).expect("a page");
    let kinds: Vec<_> = page.entries.iter().map(|entry| (entry.name.to_string(), entry.kind)).collect();
    let expected = [
        ("d", FileKind::Directory),
        ("f", FileKind::File),
        ("l", FileKind::Symlink),
        ("p", FileKind::Fifo),
        ("s", FileKind::Socket),
    ];
    assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
    assert_eq!(page.entries[1].size, 5);
    assert_eq!(page.next, None);
}

#[test]
fn stat_returns_a_symlink_or_its_target() {
    let yard = Yard::new();
    yard.plant("d/f", "12345");
    link("d/f", yard.path("l"));
    link("d", yard.path("ld"));
    link("nowhere", yard.path("dangling"));
    let at = |path: &str, follow| stat(&yard.root, &path.into(), follow);
    let link = at("l", false).expect("the symlink");
    assert_eq!((link.kind, link.target), (FileKind::Symlink, Some("d/f".into())));
    let file = at("l", true).expect("the file");
    assert_eq!((file.kind, file.size, file.target), (FileKind::File, 5, None));
    assert!(file.modified_ns > 1_600_000_000_000_000_000);
    assert_eq!(at("ld/", false).expect("a slash follows").kind, FileKind::Directory);
    refused(at("dangling", true), ErrorCode::NotFound);
    refused(at("d/f/", false), ErrorCode::NotADirectory);
    refused(at("d/f/x", false), ErrorCode::NotADirectory);
}
