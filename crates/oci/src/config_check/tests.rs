//! Configurations as programs write them, and as attackers do.

use super::*;
use crate::signal::Signal;
use crate::user::Account;

const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn with(config: &str) -> String {
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":["{DIFF}"]}}}}"#
    )
}

fn parse(config: &str) -> ConfigDocument {
    ConfigDocument::parse(with(config).as_bytes()).unwrap_or_else(|error| panic!("{config}: {error}"))
}

fn refused(config: &str) -> String {
    let error = ConfigDocument::parse(with(config).as_bytes()).expect_err("is refused");
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn list(count: usize) -> String {
    let list: Vec<String> = (0..count).map(|number| format!("\"a{number}=\"")).collect();
    format!("[{}]", list.join(","))
}

#[test]
fn a_configuration_of_docker_is_read_whole() {
    let document = parse(
        r#"{"User":"app:1000","ExposedPorts":{"80/tcp":{},"8000-8010/udp":{}},"Env":["PATH=/bin","A=1","B=a\nb","A=2"],
        "Entrypoint":["/init"],"Cmd":["-v"],"Volumes":{"/data":{}},"WorkingDir":"/srv","Labels":{"a":"b"},
        "StopSignal":"SIGRTMIN+3","Shell":["/bin/bash","-c"],"ArgsEscaped":true,"OnBuild":null,
        "Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":30000000000,"Retries":3}}"#,
    );
    let config = &document.config;
    assert_eq!(config.env, ["PATH=/bin", "A=2", "B=a\nb"], "the last value wins");
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.as_slice()),
        (&["/init".to_owned()][..], &["-v".to_owned()][..])
    );
    assert_eq!(config.user.as_ref().map(|user| &user.user), Some(&Account::Name("app".to_owned())));
    assert_eq!(config.user.as_ref().and_then(|user| user.group.as_ref()), Some(&Account::Id(1000)));
    assert_eq!(config.stop_signal.map(Signal::number), Some(37));
    assert_eq!(config.working_dir.as_deref(), Some("/srv"));
    assert_eq!(config.exposed_ports.len(), 2);
    let check = config.healthcheck.as_ref().expect("has one");
    assert_eq!((&check.test, check.interval), (&HealthTest::Shell("true".to_owned()), Some(Duration::from_secs(30))));
    assert_eq!(document.notes, Vec::<String>::new());
    assert!(document.check(1, CpuLevel::V1).is_ok());
}

#[test]
fn what_is_written_reads_back_the_same() {
    let document = parse(
        r#"{"User":"0","ExposedPorts":{"80":{}},"Env":["A="],"Cmd":["x"],"Volumes":{"/d":{}},"WorkingDir":"w","Labels":
        {"k":"v"},"StopSignal":"9","Shell":["s"],"Healthcheck":{"Test":["CMD","a","b"],"Timeout":5}}"#,
    );
    let mut config = document.config;
    config.created = Some("2024-01-02T03:04:05Z".to_owned());
    config.variant = Some("v2".to_owned());
    config.history = vec![History { created_by: Some("RUN x".to_owned()), empty_layer: true, ..History::default() }];
    let bytes = config.to_json(&document.diff_ids);
    let again = ConfigDocument::parse(&bytes).expect("our own form");
    assert_eq!((&again.config, &again.diff_ids), (&config, &document.diff_ids));
    assert_eq!(again.config.to_json(&again.diff_ids), bytes);
}

#[test]
fn null_means_empty() {
    let document = parse(
        r#"{"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null,"Volumes":null,"User":"","StopSignal":"","WorkingDir":""}"#,
    );
    assert_eq!(document.config, ImageConfig::bare());
    assert_eq!(parse("null").config, ImageConfig::bare());
}

#[test]
fn hints_that_are_malformed_are_ignored_with_a_note() {
    let notes = parse(
        r#"{"StopSignal":"SIGFOO","Volumes":{"/../../x":{},"rel":{}},"ExposedPorts":{"0/tcp":{},"80/x":{},"9-8":{}},
        "Env":["NOVALUE","=x","OK=1","\u001b[31m"],"Healthcheck":{"Test":["WHAT"]}}"#,
    )
    .notes;
    insta::assert_snapshot!(notes.join("\n"));
    assert_eq!(parse(r#"{"StopSignal":"-9"}"#).config.stop_signal, None);
    let many: Vec<String> = (0..1000).map(|number| format!("\"{number}x\":{{}}")).collect();
    assert_eq!(parse(&format!(r#"{{"Volumes":{{{}}}}}"#, many.join(","))).notes.len(), NOTES_MAX);
}

#[test]
fn configurations_that_lie_are_refused() {
    let long = format!(r#"{{"Env":["A={}"]}}"#, "x".repeat(STRING_BYTES_MAX));
    let sum = format!(r#"{{"Cmd":[{}]}}"#, vec![format!("\"{}\"", "x".repeat(100_000)); 11].join(","));
    let lines = [
        ("a list as configuration", refused("[]")),
        ("a user over 2^32", refused(r#"{"User":"4294967296"}"#)),
        ("a user of -1", refused(r#"{"User":"-1"}"#)),
        ("a group over 2^32", refused(r#"{"User":"0:99999999999"}"#)),
        ("a NUL in the environment", refused(r#"{"Env":["A=\u0000B=1"]}"#)),
        ("a million variables", refused(&format!(r#"{{"Env":{}}}"#, list(300_000)))),
        ("a long variable", refused(&long)),
        ("long arguments", refused(&sum)),
        ("a NUL in an argument", refused(r#"{"Entrypoint":["a\u0000b"]}"#)),
        ("a command that is a text", refused(r#"{"Cmd":"rm -rf /"}"#)),
        ("a descriptor as directory", refused(r#"{"WorkingDir":"/proc/self/fd/8"}"#)),
        ("a descriptor as directory, hidden", refused(r#"{"WorkingDir":"/.//proc/self/fd/8"}"#)),
        ("a directory with `..`", refused(r#"{"WorkingDir":"/a/../../x"}"#)),
        ("a directory with NUL", refused(r#"{"WorkingDir":"/a\u0000"}"#)),
        ("a key twice", refused(r#"{"Cmd":["a"],"Cmd":["b"]}"#)),
    ];
    insta::assert_snapshot!(lines.map(|(what, error)| format!("{what}: {error}")).join("\n"));
}

#[test]
fn an_image_of_another_kind_is_refused() {
    let change = |from: &str, to: &str, layers| {
        let document = ConfigDocument::parse(with("{}").replacen(from, to, 1).as_bytes());
        document.and_then(|document| document.check(layers, CpuLevel::V2)).expect_err("is refused").to_string()
    };
    let many = format!("\"{DIFF}\",").repeat(LAYERS_MAX) + "\"" + DIFF;
    let lines = [
        change("amd64", "arm64", 1),
        change("linux", "windows", 1),
        change("\"os\"", "\"variant\":\"v3\",\"os\"", 1),
        change("\"os\"", "\"os.version\"", 1),
        change("layers", "overlay", 1),
        change("", "", 2),
        change(&format!("\"{DIFF}"), &many, LAYERS_MAX + 1),
    ];
    insta::assert_snapshot!(lines.join("\n"));
}
