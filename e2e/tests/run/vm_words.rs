//! Text of a guest that kiln prints: it never controls the user's terminal.

use kiln_e2e::Kiln;
use kiln_wire::is_hidden;

/// A guest that writes hostile text to its console, to its kernel's log, and into the error of a file.
const SCRIPT: &str = "printf 'row \\342\\200\\256evil\\342\\201\\246 \\302\\23331m \\033[2J \\177\\n' > /dev/console; \
     printf '<4>BUG: using sm\\342\\200\\256p() in preemptible [00000000] code: a/1\\n' > /dev/kmsg; \
     printf '<4> g\\342\\200\\213+0x1/0x2\\n<4>---[ end trace 0 ]---\\n' > /dev/kmsg; sleep 1; exit 3";
/// A file for `--out` that the guest does not have.
const MISSING: &str = "/tmp/\u{202e}missing\u{9b}2J\u{7f}:/tmp/kiln-test-never-made";

fn has_hidden(text: &str) -> bool {
    text.chars().any(|character| is_hidden(character) && character != '\n')
}

#[test]
fn a_guest_steers_no_terminal_and_hides_no_text() {
    let outcome = Kiln::shell(&["--verbose", "--verbose", "--console", "--out", MISSING], SCRIPT).run();
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(!has_hidden(&outcome.stderr), "{:?}", outcome.stderr);
    for words in [
        r"console| row \u{202e}evil\u{2066} 31m",
        // A title has only the letters of a function's name.
        r"reported: BUG: using smp() in preemptible code",
        r"\u{202e}missing\u{9b}2J\u{7f}",
    ] {
        assert!(outcome.stderr.contains(words), "no `{words}` in {}", outcome.stderr);
    }
}

#[test]
fn json_has_escapes_for_what_a_guest_hides() {
    let script = format!("printf 'out \\342\\200\\256 \\302\\233 \\177'; {SCRIPT}");
    let outcome = Kiln::shell(&["--json", "--out", MISSING], &script).run();
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert!(!has_hidden(&outcome.text()), "{:?}", outcome.text());
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    assert_eq!(report["stdout"], "out \u{202e} \u{9b} \u{7f}", "a program reads what the command wrote");
    assert!(report["error"].as_str().is_some_and(|error| error.contains("\u{202e}missing")), "{report}");
    assert!(report["findings"][0]["log"].as_array().is_some_and(|log| log.len() > 1), "{report}");
}

#[test]
fn the_output_of_the_command_is_passed_on_unchanged() {
    let outcome = Kiln::shell(&[], "printf 'a\\342\\200\\256\\302\\233\\177\\033[2J'").run();
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (0, "a\u{202e}\u{9b}\u{7f}\x1b[2J".as_bytes()));
}
