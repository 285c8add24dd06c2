//! Any layers of a few names, against a model that keeps whole paths in a map.

use std::collections::{BTreeMap, HashSet, VecDeque};

use kiln_archive::EntryType;
use proptest::prelude::*;

use crate::builder::Tar;
use crate::image::build;

/// An entry or a mark.
#[derive(Debug, Clone)]
enum Step {
    Directory(String, u32),
    File(String, u8),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// What a path has: a number that two names of the same node share, and a description.
type Paths = BTreeMap<String, (usize, Content)>;

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Directory(u32),
    File(u8),
    Symlink(String),
}

/// The refusal of a layer.
struct Refused;

#[derive(Default)]
struct Model {
    paths: Paths,
    nodes: usize,
}

impl Model {
    fn apply(&mut self, layer: &[Step]) -> Result<(), Refused> {
        let own: HashSet<&str> = layer.iter().filter_map(entry_path).collect();
        for step in layer {
            match step {
                Step::Whiteout(path) => {
                    let (parent, name) = split(path);
                    if let Some(parent) = self.resolve(parent, Some(&own), false)? {
                        self.remove(&join(&parent, name));
                    }
                }
                Step::Opaque(path) => {
                    if let Some(path) = self.resolve(path, Some(&own), false)? {
                        self.paths.retain(|other, _| !is_below(other, &path));
                    }
                }
                _ => {}
            }
        }
        layer.iter().try_for_each(|step| self.entry(step))
    }

    fn entry(&mut self, step: &Step) -> Result<(), Refused> {
        let Some(path) = entry_path(step) else { return Ok(()) };
        let (parent, name) = split(path);
        let path = join(&self.resolve(parent, None, true)?.expect("it was made"), name);
        self.nodes += 1;
        let new = match step {
            Step::Directory(_, mode) => {
                if let Some((_, Content::Directory(known))) = self.paths.get_mut(&path) {
                    *known = *mode;
                    return Ok(());
                }
                (self.nodes, Content::Directory(*mode))
            }
            Step::File(_, byte) => (self.nodes, Content::File(*byte)),
            Step::Symlink(_, target) => (self.nodes, Content::Symlink(target.clone())),
            Step::Link(_, target) => {
                let (parent, name) = split(target);
                let target = join(&self.resolve(parent, None, false)?.ok_or(Refused)?, name);
                match self.paths.get(&target) {
                    Some((_, Content::Directory(_))) | None => return Err(Refused),
                    _ if target == path => return Err(Refused),
                    Some(node) => node.clone(),
                }
            }
            Step::Whiteout(_) | Step::Opaque(_) => unreachable!("they are no entries"),
        };
        self.remove(&path);
        self.paths.insert(path, new);
        Ok(())
    }

    /// The path without symlinks of a directory.
    fn resolve(&mut self, path: &str, own: Option<&HashSet<&str>>, make: bool) -> Result<Option<String>, Refused> {
        // Parts of the path itself know the path up to their end; parts of symlinks do not.
        let mut ahead: VecDeque<(String, Option<String>)> = VecDeque::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let before = ahead.back().and_then(|(_, path)| path.clone()).unwrap_or_default();
            ahead.push_back((part.to_owned(), Some(join(&before, part))));
        }
        let (mut here, mut links) = (String::new(), 0);
        while let Some((part, whole)) = ahead.pop_front() {
            if part == ".." {
                here = split(&here).0.to_owned();
                continue;
            }
            let next = join(&here, &part);
            match self.paths.get(&next).map(|(_, content)| content.clone()) {
                Some(Content::Directory(_)) => here = next,
                Some(Content::Symlink(target)) => {
                    if own.zip(whole.as_deref()).is_some_and(|(own, whole)| own.contains(whole)) {
                        return Ok(None);
                    }
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    if target.starts_with('/') {
                        here.clear();
                    }
                    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".").rev() {
                        ahead.push_front((part.to_owned(), None));
                    }
                }
                Some(Content::File(_)) if make => return Err(Refused),
                None if make => {
                    self.nodes += 1;
                    self.paths.insert(next.clone(), (self.nodes, Content::Directory(0o755)));
                    here = next;
                }
                Some(Content::File(_)) | None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    fn remove(&mut self, path: &str) {
        self.paths.retain(|other, _| other != path && !is_below(other, path));
    }

    /// A line for each path, with the first path that has the same node.
    fn lines(&self) -> Vec<String> {
        let mut first = BTreeMap::new();
        let describe = |(path, (node, content)): (&String, &(usize, Content))| {
            let first: &mut String = first.entry(*node).or_insert_with(|| path.clone());
            format!("{path} {content:?} {first}")
        };
        self.paths.iter().map(describe).collect()
    }
}

fn entry_path(step: &Step) -> Option<&str> {
    match step {
        Step::Directory(path, _) | Step::File(path, _) | Step::Symlink(path, _) | Step::Link(path, _) => Some(path),
        Step::Whiteout(_) | Step::Opaque(_) => None,
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn is_below(path: &str, parent: &str) -> bool {
    parent.is_empty() || path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

fn archive(layer: &[Step]) -> Tar {
    layer.iter().fold(Tar::new(), |tar, step| match step {
        Step::Directory(path, mode) => tar.member(EntryType::Directory, path, b"", |header| header.set_mode(*mode)),
        Step::File(path, byte) => tar.file(path, [*byte]),
        Step::Symlink(path, target) => tar.symlink(path, target),
        Step::Link(path, target) => tar.hard_link(path, target),
        Step::Whiteout(path) => {
            let (parent, name) = split(path);
            tar.mark(&join(parent, &format!(".wh.{name}")))
        }
        Step::Opaque(path) => tar.mark(&join(path, ".wh..wh..opq")),
    })
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let target = prop::sample::select(vec!["a", "/b", "../c", "b/c", "/a/../b", ".", "c/b/a", "../.."]);
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o700, 0o755])).prop_map(|(path, mode)| Step::Directory(path, mode)),
        3 => (path(), 1_u8..4).prop_map(|(path, byte)| Step::File(path, byte)),
        2 => (path(), target).prop_map(|(path, target)| Step::Symlink(path, target.to_owned())),
        2 => (path(), path()).prop_map(|(path, target)| Step::Link(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => prop_oneof![path(), Just(String::new())].prop_map(Step::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_layers_give_the_tree_of_the_model(layers in prop::collection::vec(prop::collection::vec(step(), 0..7), 1..4)) {
        let mut model = Model::default();
        let expected = layers.iter().try_for_each(|layer| model.apply(layer));
        let image = build(layers.iter().map(|layer| archive(layer)));
        prop_assert_eq!(image.is_ok(), expected.is_ok(), "{:?}", image.err());
        if let Ok(image) = image {
            let mut found = Model::default();
            image.walk(|path, id| {
                let node = image.tree.node(id);
                let content = match &node.kind {
                    kiln_rootfs::Kind::Directory(_) => Content::Directory(node.attributes.permissions.into()),
                    kiln_rootfs::Kind::File(_) => Content::File(image.content(id)[0]),
                    kiln_rootfs::Kind::Symlink(target) => Content::Symlink(String::from_utf8_lossy(target).into_owned()),
                    other => panic!("no layer has {other:?}"),
                };
                found.paths.insert(String::from_utf8_lossy(path).into_owned(), (id.index(), content));
            });
            prop_assert_eq!(found.lines(), model.lines());
        }
    }
}
