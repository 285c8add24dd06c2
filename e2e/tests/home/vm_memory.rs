//! The least memory that the shared image boots with, as measured when it was built.

use std::fs;

use kiln_e2e::{Kiln, TestHome};
use serde_json::Value;

/// The least memory in the image's manifest.
fn least() -> u64 {
    let image = Kiln::new(["image", "inspect", "mini"]).run();
    let image: Value = serde_json::from_slice(&image.stdout).expect("an object");
    image["memory_mib_min"].as_u64().expect("it was measured when it was built")
}

#[test]
fn the_measured_minimum_boots_with_one_cpu_and_with_more() {
    for (memory, cpus) in [(least(), "1"), (least() + 3, "4")] {
        let memory = memory.to_string();
        let outcome = Kiln::new(["run", "--cold", "-m", &memory, "-c", cpus, "--", "echo", "up"]).run();
        assert_eq!((outcome.code, outcome.text().as_str()), (0, "up"), "{memory} MiB: {}", outcome.stderr);
    }
}

#[test]
fn less_memory_is_refused_at_once_with_the_minimum() {
    let less = (least() - 1).to_string();
    for command in [&["run", "-m", &less, "--", "true"][..], &["image", "warm", "mini", "-m", &less]] {
        let outcome = Kiln::new(command).run();
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        let expected = format!("the image `mini` needs {} MiB of memory with 1 CPU, not {less} MiB", least());
        assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("hint: --memory {}", least())), "{}", outcome.stderr);
    }
}

#[test]
fn an_image_without_a_minimum_is_measured_when_that_decides() {
    let home = TestHome::with_image();
    // The home may also hold images of earlier builds.
    let images = home.path().join("images");
    let digest = fs::read_to_string(images.join("names/mini")).expect("the image has a name");
    let manifest = images.join(digest.trim()).join("image.json");
    let mut written: Value = serde_json::from_slice(&fs::read(&manifest).expect("is there")).expect("JSON");
    written["memory_mib_min"] = Value::Null;
    fs::write(&manifest, written.to_string()).expect("is written");

    let listed = home.kiln(["image", "ls"]).run();
    assert!(listed.text().contains("192 MiB (not measured)"), "{}", listed.text());
    let doctor = home.kiln(["doctor"]).run();
    let named = doctor.text().lines().any(|line| line.contains("guest memory") && line.contains("not measured"));
    assert!(named && doctor.text().contains("kiln image build mini"), "{}", doctor.text());
    // If no VM can boot, the assumed number decides.
    let without = home.kiln(["run", "-m", "100", "--", "true"]).env("KILN_QEMU", "/surely/not/qemu").run();
    assert_eq!(without.code, 2, "{}", without.stderr);
    assert!(without.stderr.contains("was not measured and is assumed to need 192 MiB"), "{}", without.stderr);

    // Far too little. The refusal names the measured number and not the assumed one.
    let refused = home.kiln(["run", "-m", "33", "--", "true"]).run();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("the image `mini` needs "), "{}", refused.stderr);
    let measured: Value = serde_json::from_slice(&fs::read(&manifest).expect("is there")).expect("JSON");
    let measured = measured["memory_mib_min"].as_u64().expect("it was measured");
    assert!((64..192).contains(&measured), "{measured}");
    assert!(refused.stderr.contains(&format!("hint: --memory {measured}")), "{}", refused.stderr);
}
