//! How little memory the image that all tests share boots with, as it was measured when it was built.

use kiln_e2e::Kiln;

/// What the image's manifest says.
fn least() -> u64 {
    let images = Kiln::new(["image", "ls", "--json"]).run();
    let images: serde_json::Value = serde_json::from_slice(&images.stdout).expect("a list");
    images[0]["memory_mib_min"].as_u64().expect("it was measured when it was built")
}

#[test]
fn the_measured_least_boots_with_one_cpu_and_with_more() {
    for (memory, cpus) in [(least(), "1"), (least() + 3, "4")] {
        let memory = memory.to_string();
        let outcome = Kiln::new(["run", "--cold", "-m", &memory, "-c", cpus, "--", "echo", "up"]).run();
        assert_eq!((outcome.code, outcome.text().as_str()), (0, "up"), "{memory} MiB: {}", outcome.stderr);
    }
}

#[test]
fn less_is_refused_at_once_with_the_number() {
    let less = (least() - 1).to_string();
    for command in [&["run", "-m", &less, "--", "true"][..], &["image", "warm", "mini", "-m", &less]] {
        let outcome = Kiln::new(command).run();
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        let expected = format!("the image `mini` needs {} MiB of memory with 1 CPU, not {less} MiB", least());
        assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("hint: --memory {}", least())), "{}", outcome.stderr);
    }
}
