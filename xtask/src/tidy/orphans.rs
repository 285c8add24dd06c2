//! Rust files that no target reaches: the compiler never reads them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cargo_metadata::Metadata;

use super::problem::Problem;

/// Follows `mod` lines from the root of every target and names each file that they do not reach.
pub fn check(root: &Path, workspaces: &[&Metadata], files: &[PathBuf]) -> Vec<Problem> {
    let roots = workspaces.iter().flat_map(|workspace| &workspace.packages).flat_map(|package| &package.targets);
    let roots = roots.filter_map(|target| target.src_path.as_std_path().strip_prefix(root).ok().map(Path::to_path_buf));
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    let reached = reach(roots.collect(), read);
    let orphans = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let orphans = orphans.filter(|path| !reached.contains(*path));
    orphans.map(|path| Problem::new(path, 1, "is not a target, and no `mod` line leads to it")).collect()
}

/// All files that the roots lead to. `read` returns a file's text, or `None` if the file does not exist.
fn reach(roots: Vec<PathBuf>, read: impl Fn(&Path) -> Option<String>) -> BTreeSet<PathBuf> {
    let mut reached: BTreeSet<PathBuf> = roots.iter().cloned().collect();
    let mut open: Vec<(PathBuf, bool)> = roots.into_iter().map(|path| (path, true)).collect();
    while let Some((path, is_root)) = open.pop() {
        let Some(text) = read(&path) else { continue };
        for child in children(&path, is_root, &text) {
            if read(&child).is_some() && reached.insert(child.clone()) {
                open.push((child, false));
            }
        }
    }
    reached
}

/// Paths of the modules and included files that a file names. A module has two possible paths, of which one exists.
fn children(path: &Path, is_root: bool, text: &str) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let is_folder_module = is_root || path.file_name().is_some_and(|name| name == "mod.rs");
    let modules = if is_folder_module { folder.to_path_buf() } else { path.with_extension("") };
    let mut children = Vec::new();
    let mut has_given_path = false;
    for line in text.lines().map(str::trim) {
        if let Some(file) = quoted(line, "include!(\"") {
            children.push(folder.join(file));
        } else if let Some(file) = quoted(line, "#[path = \"") {
            children.push(folder.join(file));
            has_given_path = true;
        } else if let Some(name) = module_name(line) {
            if !has_given_path {
                children.push(modules.join(format!("{name}.rs")));
                children.push(modules.join(name).join("mod.rs"));
            }
            has_given_path = false;
        }
    }
    children
}

/// The name in `mod name;`, with any visibility.
fn module_name(line: &str) -> Option<&str> {
    let rest = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1,
        Some(rest) => rest,
        None => line,
    };
    let name = rest.trim_start().strip_prefix("mod ")?.split_once(';')?.0.trim();
    (!name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

fn quoted<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    Some(line.split_once(start)?.1.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(tree: &[(&str, &str)]) -> Vec<String> {
        let read =
            |path: &Path| tree.iter().find(|(name, _)| path == Path::new(name)).map(|(_, text)| (*text).to_owned());
        let files = reach(vec![PathBuf::from("src/lib.rs")], read);
        files.into_iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn modules_are_followed_to_all_possible_paths() {
        let tree = [
            ("src/lib.rs", "mod a;\npub mod b;\n"),
            ("src/a.rs", "pub(crate) mod inner;\n"),
            ("src/a/inner.rs", ""),
            ("src/b/mod.rs", "mod leaf;\n"),
            ("src/b/leaf.rs", ""),
        ];
        assert_eq!(reached(&tree), ["src/a/inner.rs", "src/a.rs", "src/b/leaf.rs", "src/b/mod.rs", "src/lib.rs"]);
    }

    #[test]
    fn a_file_without_a_mod_line_is_not_reached() {
        assert_eq!(reached(&[("src/lib.rs", "// mod lost;\n"), ("src/lost.rs", "")]), ["src/lib.rs"]);
    }

    #[test]
    fn path_attributes_and_includes_are_followed() {
        let tree = [
            ("src/lib.rs", "#[path = \"other/x.rs\"]\nmod y;\nconst T: u8 = include!(\"table.rs\");\n"),
            ("src/other/x.rs", ""),
            ("src/table.rs", ""),
        ];
        assert_eq!(reached(&tree), ["src/lib.rs", "src/other/x.rs", "src/table.rs"]);
    }

    #[test]
    fn only_declarations_of_files_count_as_modules() {
        assert_eq!(module_name("pub(super) mod link;"), Some("link"));
        assert_eq!(module_name("mod tests {"), None);
        assert_eq!(module_name("let model = 1;"), None);
    }
}
