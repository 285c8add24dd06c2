//! Modules of a crate may use each other, as long as no chain of uses leads back to its start.
//!
//! All files in the folder of a module belong to it, so the arrows are those between the modules that a crate's root
//! names. Tests may use any module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::problem::Problem;

/// For each module the modules that it uses, each with the first file that uses it.
type Uses = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// Names each circle between the modules of a crate, at one of the uses that close it. `read` gives a file's text.
pub fn check(files: &[PathBuf], read: impl Fn(&Path) -> Option<String>) -> Vec<Problem> {
    let mut crates: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let mut parts = file.components().map(|part| part.as_os_str().to_str().unwrap_or_default());
        if let (Some("crates"), Some(name), Some("src")) = (parts.next(), parts.next(), parts.next()) {
            crates.entry(name).or_default().push(file);
        }
    }
    crates.values().flat_map(|files| circles(&uses(files, &read))).collect()
}

fn uses(files: &[&Path], read: impl Fn(&Path) -> Option<String>) -> Uses {
    let modules: Vec<Vec<String>> = files.iter().map(|file| module(file)).collect();
    let roots: BTreeSet<&str> = modules.iter().filter_map(|path| path.first()).map(String::as_str).collect();
    let texts = files.iter().map(|file| read(file).and_then(|text| TokenStream::from_str(&text).ok()));
    let tokens: Vec<Vec<TokenTree>> = texts.map(|tokens| tokens.into_iter().flatten().collect()).collect();

    // A name that the root re-exports belongs to its original module.
    let mut exports = BTreeMap::new();
    for (_, tokens) in modules.iter().zip(&tokens).filter(|(module, _)| module.is_empty()) {
        re_exports(tokens, &roots, &mut exports);
    }
    let tests: BTreeSet<Vec<String>> =
        modules.iter().zip(&tokens).flat_map(|(module, tokens)| test_modules(module, tokens)).collect();
    let mut uses = Uses::new();
    for ((file, module), tokens) in files.iter().zip(&modules).zip(&tokens) {
        let Some(from) = module.first() else { continue };
        if (1..=module.len()).any(|length| tests.contains(&module[..length])) {
            continue;
        }
        let mut names = BTreeSet::new();
        names_below_root(tokens, module.len(), &mut names);
        for name in names {
            let target = if roots.contains(name.as_str()) { Some(name.as_str()) } else { exports.get(&name).copied() };
            if let Some(target) = target.filter(|target| target != from) {
                let targets = uses.entry(from.clone()).or_default();
                targets.entry(target.to_owned()).or_insert_with(|| file.to_path_buf());
            }
        }
    }
    uses
}

/// The path of a file's module; empty for a crate's root.
fn module(file: &Path) -> Vec<String> {
    let parts: Vec<String> = file.with_extension("").iter().skip(3).map(|part| part.to_string_lossy().into()).collect();
    match parts.split_last() {
        Some((last, folder)) if matches!(last.as_str(), "mod" | "lib" | "main") => folder.to_vec(),
        _ => parts,
    }
}

/// The modules that a module has for tests only, each in a file of its own.
fn test_modules(module: &[String], tokens: &[TokenTree]) -> Vec<Vec<String>> {
    let declared = (0..tokens.len()).filter(|at| is_test_attribute(&tokens[*at..])).filter_map(|at| {
        let item: Vec<&TokenTree> = tokens[at + 2..].iter().take_while(|token| !is(token, ';')).collect();
        match item[..] {
            [.., TokenTree::Ident(word), TokenTree::Ident(name)] if word == "mod" => Some(name.to_string()),
            _ => None,
        }
    });
    declared.map(|name| [module, &[name]].concat()).collect()
}

/// Collects the first name after each `crate::`, and after each chain of `super::` that leads to the root.
fn names_below_root(tokens: &[TokenTree], depth: usize, names: &mut BTreeSet<String>) {
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens[at..]) {
            at += 2;
            // Up to the end of the item: its body, or a semicolon.
            while at < tokens.len() && !ends_item(&tokens[at]) {
                at += 1;
            }
            at += 1;
            continue;
        }
        let supers = chain(&tokens[at..], "super");
        let behind = if chain(&tokens[at..], "crate") == 1 {
            Some(at + 3)
        } else {
            (supers > 0 && supers == depth).then_some(at + 3 * supers)
        };
        if let Some(behind) = behind {
            first_names(&tokens[behind..], names);
        }
        if let TokenTree::Group(group) = &tokens[at] {
            names_below_root(&group.stream().into_iter().collect::<Vec<_>>(), depth, names);
        }
        at += (3 * supers).max(1);
    }
}

/// How often `word ::` is repeated at the start.
fn chain(tokens: &[TokenTree], word: &str) -> usize {
    let is_link = |link: &[TokenTree]| matches!(link, [TokenTree::Ident(ident), one, two] if ident == word && is(one, ':') && is(two, ':'));
    tokens.chunks(3).take_while(|link| is_link(link)).count()
}

/// Collects the name at the start, or the first name of each part of a group in braces.
fn first_names(tokens: &[TokenTree], names: &mut BTreeSet<String>) {
    match tokens.first() {
        Some(TokenTree::Ident(name)) => drop(names.insert(name.to_string())),
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            inner.split(|token| is(token, ',')).for_each(|part| first_names(part, names));
        }
        _ => {}
    }
}

/// Reads each `use module::…;` of a root: which names come from which module.
fn re_exports<'a>(tokens: &[TokenTree], roots: &BTreeSet<&'a str>, exports: &mut BTreeMap<String, &'a str>) {
    for statement in tokens.split(|token| is(token, ';')) {
        let mut rest = statement.iter().skip_while(|token| !matches!(token, TokenTree::Ident(word) if word == "use"));
        let Some(TokenTree::Ident(module)) = rest.nth(1) else { continue };
        let Some(module) = roots.get(module.to_string().as_str()) else { continue };
        let mut names = BTreeSet::new();
        all_names(&rest.cloned().collect::<Vec<_>>(), &mut names);
        exports.extend(names.into_iter().map(|name| (name, *module)));
    }
}

fn all_names(tokens: &[TokenTree], names: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(name) => drop(names.insert(name.to_string())),
            TokenTree::Group(group) => all_names(&group.stream().into_iter().collect::<Vec<_>>(), names),
            _ => {}
        }
    }
}

fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    match tokens {
        [hash, TokenTree::Group(group), ..] if is(hash, '#') => {
            let text = group.stream().to_string().replace(' ', "");
            text == "cfg(test)" || text.starts_with("cfg(any(test,") || text.starts_with("cfg(all(test,")
        }
        _ => false,
    }
}

fn ends_item(token: &TokenTree) -> bool {
    is(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn is(token: &TokenTree, sign: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign)
}

/// One problem for each circle of modules. A circle is found from each of its modules, but named only once.
fn circles(uses: &Uses) -> Vec<Problem> {
    let mut named = BTreeSet::new();
    let mut problems = Vec::new();
    for start in uses.keys() {
        let Some(circle) = shortest_way_back(uses, start) else { continue };
        let members: BTreeSet<&str> = circle.iter().copied().collect();
        if named.insert(members) {
            let last = circle[circle.len() - 1];
            let way = circle.join("` -> `");
            let problem = format!("closes a circle of modules: `{way}` -> `{start}`");
            problems.push(Problem::new(&uses[last][start], 1, problem));
        }
    }
    problems
}

/// The modules of the shortest circle through `start`, which comes first.
fn shortest_way_back<'a>(uses: &'a Uses, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut layer = vec![start];
    while !layer.is_empty() {
        let mut next = Vec::new();
        for from in layer {
            for to in uses.get(from).into_iter().flat_map(|targets| targets.keys()) {
                if to == start {
                    let mut way = vec![from];
                    while let Some(before) = came_from.get(way[way.len() - 1]) {
                        way.push(before);
                    }
                    way.reverse();
                    return Some(way);
                }
                if !came_from.contains_key(to.as_str()) {
                    came_from.insert(to, from);
                    next.push(to.as_str());
                }
            }
        }
        layer = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tree: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<PathBuf> = tree.iter().map(|(name, _)| PathBuf::from(name)).collect();
        let read =
            |path: &Path| tree.iter().find(|(name, _)| path == Path::new(name)).map(|(_, text)| (*text).to_owned());
        check(&files, read).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_circle_is_named_with_all_its_modules() {
        let tree = [
            ("crates/x/src/lib.rs", "mod a; mod b; mod c;"),
            ("crates/x/src/a.rs", "use crate::b::B;"),
            ("crates/x/src/b/mod.rs", "mod inner;"),
            ("crates/x/src/b/inner.rs", "use crate::{c::C, d};"),
            ("crates/x/src/c.rs", "fn f() { vec![crate::a::new()]; }"),
        ];
        assert_eq!(found(&tree), ["crates/x/src/c.rs:1: closes a circle of modules: `a` -> `b` -> `c` -> `a`"]);
        assert_eq!(found(&tree[..4]), Vec::<String>::new());
    }

    #[test]
    fn names_that_the_root_re_exports_count_as_their_modules() {
        let tree = [
            ("crates/x/src/lib.rs", "mod a;\npub mod b;\npub use a::{A, Other};\npub use b::B;\n"),
            ("crates/x/src/a.rs", "use crate::B;"),
            ("crates/x/src/b.rs", "use crate::A;"),
        ];
        assert_eq!(found(&tree).len(), 1);
    }

    #[test]
    fn a_chain_of_super_that_leads_to_the_root_counts() {
        let tree = [
            ("crates/x/src/a.rs", "use super::b::B;"),
            ("crates/x/src/b/mod.rs", "mod inner;"),
            ("crates/x/src/b/inner.rs", "use super::super::a::A; use super::a::B;"),
        ];
        assert_eq!(found(&tree).len(), 1);
        let inside = [tree[0], tree[1], ("crates/x/src/b/inner.rs", "use super::a::B;")];
        assert_eq!(found(&inside), Vec::<String>::new());
    }

    #[test]
    fn tests_and_comments_draw_no_arrows() {
        let tree = [
            ("crates/x/src/a.rs", "use crate::b::B;"),
            (
                "crates/x/src/b.rs",
                "//! See [`crate::a`].\n#[cfg(test)]\nuse crate::a::A;\n#[cfg(test)]\nmod tests { use crate::a::A; }\n",
            ),
        ];
        assert_eq!(found(&tree), Vec::<String>::new());
        let after = [tree[0], ("crates/x/src/b.rs", "#[cfg(test)]\nmod tests {}\nuse crate::a::A;\n")];
        assert_eq!(found(&after).len(), 1);
    }

    #[test]
    fn a_file_that_is_only_for_tests_draws_no_arrows() {
        let tree = [
            ("crates/x/src/a.rs", "use crate::b::B;"),
            ("crates/x/src/b/mod.rs", "mod inner;\n#[cfg(test)]\npub(crate) mod tests;\n"),
            ("crates/x/src/b/tests.rs", "use crate::a::A;"),
            ("crates/x/src/b/tests/more.rs", "use crate::a::A;"),
        ];
        assert_eq!(found(&tree), Vec::<String>::new());
        let inner = [tree[0], tree[1], ("crates/x/src/b/inner.rs", "use crate::a::A;")];
        assert_eq!(found(&inner).len(), 1);
    }

    #[test]
    fn a_module_that_uses_its_own_parts_is_not_a_circle() {
        let tree = [("crates/x/src/a/mod.rs", "use crate::a::b::B;"), ("crates/x/src/a/b.rs", "use crate::a::A;")];
        assert_eq!(found(&tree), Vec::<String>::new());
    }
}
