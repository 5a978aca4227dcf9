//! `docs/stacks.md` has the recipes as they are compiled, and says what was tested.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The cases in the order of the table's columns.
const CASES: [&str; 6] = [
    "expired_token",
    "stampede_of_50",
    "network_failure_while_refreshing",
    "ended_session",
    "redirect_to_a_foreign_host",
    "body_over_the_limit",
];

/// The code between `// [recipe: name]` and `// [end]`, and the cases that are tested beside it.
#[derive(Debug)]
struct Recipe {
    code: String,
    cases: Vec<bool>,
}

fn document() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/stacks.md")).unwrap()
}

fn recipes() -> BTreeMap<String, Recipe> {
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let files = folder.map(|file| file.unwrap().path()).filter(|path| path.is_file());
    let mut recipes = BTreeMap::new();
    for source in files.map(|path| fs::read_to_string(path).unwrap()) {
        let tested =
            source.split_once("cases!(").and_then(|(_, list)| list.split_once(");")).map_or("", |(list, _)| list);
        let cases: Vec<bool> = CASES.iter().map(|case| tested.contains(case)).collect();
        for region in source.split("// [recipe: ").skip(1) {
            let (name, rest) = region.split_once("]\n").unwrap();
            let (code, _) = rest.split_once("// [end]").expect("a recipe ends");
            let recipe = Recipe { code: dedented(code), cases: cases.clone() };
            assert!(recipes.insert(name.to_owned(), recipe).is_none(), "there are two recipes for {name}");
        }
    }
    recipes
}

/// Removes the common indentation, and the blank rest of the last line.
fn dedented(code: &str) -> String {
    let indentation =
        code.lines().filter(|line| !line.trim().is_empty()).map(|line| line.len() - line.trim_start().len());
    let indentation = indentation.min().unwrap();
    let lines = code.trim_end().lines().map(|line| line.get(indentation..).unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the rows of the table, by the stack's name.
fn rows(document: &str) -> BTreeMap<&str, Vec<&str>> {
    let (_, table) = document.split_once("| stack | lines |").expect("there is a table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().unwrap().trim_start_matches('[').split(']').next().unwrap();
        (name, cells.collect())
    })
    .collect()
}

#[test]
fn the_code_of_the_documentation_is_the_code_that_is_compiled() {
    let document = document();
    let shown = document.split("<!-- recipe: ").skip(1).map(|block| {
        let (name, rest) = block.split_once(" -->\n```rust\n").expect("a recipe is followed by its code");
        (name.to_owned(), rest.split_once("\n```").unwrap().0.to_owned())
    });
    let shown: BTreeMap<String, String> = shown.collect();
    let compiled: BTreeMap<String, String> = recipes().into_iter().map(|(name, recipe)| (name, recipe.code)).collect();
    assert_eq!(shown, compiled);
    let others = document.matches("```rust").count();
    assert_eq!(others, shown.len(), "each piece of code is a recipe");
}

#[test]
fn the_table_says_how_many_lines_a_user_writes_and_what_was_tested() {
    let document = document();
    let mut rows = rows(&document);
    for (name, recipe) in recipes() {
        if name == "layer" {
            continue;
        }
        let row = rows.remove(&*name).unwrap_or_else(|| panic!("{name} is in the table"));
        // The line of the layer, where a recipe is given one.
        let layer = recipe.code.contains(".layer(layer)") && !recipe.code.contains("let layer =");
        let lines = recipe.code.lines().filter(|line| !line.is_empty()).count() + usize::from(layer);
        assert_eq!(row[0], lines.to_string(), "the lines of {name}");
        assert!(lines <= 10, "{name} takes {lines} lines");
        for ((cell, tested), case) in row[1..].iter().zip(&recipe.cases).zip(CASES) {
            assert_eq!(*cell == "yes", *tested, "{name}, {case}");
        }
        assert_eq!(row.len(), 1 + CASES.len());
    }
    assert!(rows.is_empty(), "the table has stacks without a recipe: {rows:?}");
}
