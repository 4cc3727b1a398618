//! What the command line takes and refuses.

use super::values::{duration, maintenance};
use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split_whitespace()).map_err(|e| e.to_string())
}

fn dev(line: &str) -> DevOptions {
    match parse(line).unwrap().command {
        Command::Dev(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_well_made() {
    Cli::command().debug_assert();
}

#[test]
fn a_node_needs_its_configuration_or_an_order() {
    let node = |line: &str| match parse(line).unwrap().command {
        Command::Node(options) => options,
        other => panic!("{other:?}"),
    };
    assert!(node("peristyle node --config f --check").order.is_none());
    assert!(matches!(node("peristyle node drain 3").order, Some(NodeOrder::Drain { node: 3 })));
    assert!(matches!(node("peristyle node remove 3").order, Some(NodeOrder::Remove { node: 3 })));
    let order = node("peristyle node maintain 2 --for 20m").order;
    assert!(matches!(order, Some(NodeOrder::Maintain { node: 2, seconds: 1200, force: false })));
    let seconds = ["90s", "2h", "30d"].map(|time| maintenance(time).unwrap());
    assert_eq!(seconds, [90, 7200, 2_592_000]);
    assert!(["31d", "500ms", "0", "1w", "h"].into_iter().all(|time| maintenance(time).is_err()));
    assert!(parse("peristyle node").unwrap_err().contains("--config"));
    assert!(parse("peristyle node drain").is_err() && parse("peristyle node --config f drain 3").is_err());
}

#[test]
fn dev_needs_no_options() {
    let d = dev("peristyle dev");
    assert_eq!((d.devices_alone(), d.device_size, d.scheme.to_string().as_str()), (6, 4 << 30, "4+2"));
    assert_eq!((d.listen.to_string().as_str(), d.lba, d.poll), ("127.0.0.1:4420", 4096, PollArg::Adaptive));
    assert!(d.volumes.is_empty() && d.nbd.is_none() && d.advertise.is_none() && !d.json);
}

#[test]
fn dev_takes_what_its_help_shows() {
    let d = dev(
        "peristyle dev --devices 4 --scheme 2+1 --device-size 1GiB --volume a=512MiB --volume b=1GiB --nbd --json",
    );
    assert_eq!(d.volumes[1], VolumeArg { name: "b".into(), bytes: 1 << 30 });
    assert_eq!(d.nbd.unwrap().to_string(), "127.0.0.1:10809");
    let d =
        dev("peristyle dev --device /dev/a --device /dev/b --nbd unix:/tmp/nbd.sock --lba 512 --poll busy");
    assert_eq!((d.device_list.len(), d.lba, Poll::from(d.poll)), (2, 512, Poll::Busy));
    assert_eq!(d.nbd, Some(ListenAddr::Unix("/tmp/nbd.sock".into())));
}

#[test]
fn every_example_in_the_help_parses() {
    let mut command = Cli::command();
    let mut examples = Vec::new();
    command.build();
    for sub in command.get_subcommands().flat_map(|c| c.get_subcommands().chain([c])) {
        let help = sub.get_after_help().map(|h| h.to_string()).unwrap_or_default();
        let lines = help.lines().map(|l| l.trim().trim_start_matches("Example: ").to_owned());
        examples.extend(lines.filter(|l| l.starts_with("peristyle ")));
    }
    assert!(examples.len() >= 9, "{examples:?}");
    for example in examples {
        let line = example.split('|').next().unwrap();
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn mistakes_are_answered_with_what_to_write() {
    for (line, word) in [
        ("dev --scheme 17+1", "k in 1..=16"),
        ("dev --volume demo", "NAME=SIZE"),
        ("dev --volume a/b=1G", "not a name"),
        ("dev --volume a=big", "512MiB"),
        ("dev --device /dev/a --devices 3", "cannot be used with"),
        ("dev --lba 1024", "4096 or 512"),
        ("dev --devices 0", "1..=64"),
        ("dev --device-size 1M", "64MiB"),
        ("dev --listen localhost", "invalid"),
        ("dev --nbd localhost", "IP:PORT"),
        ("node", "--config"),
        ("volume resize a", "<SIZE>"),
        ("volume resize a big", "512MiB"),
        ("volume resize a 1G --discard-data", "--shrink"),
        ("device format", "<PATH>"),
        ("inject 1 stall --for 5x", "500ms"),
        ("inject 1 stall --for 2h", "at most 1h"),
        ("inject 1 burn", "stall"),
        ("stats --watch 0", "1..=3600"),
    ] {
        let error = parse(&format!("peristyle {line}")).unwrap_err();
        assert!(error.contains(word), "{line}: {error}");
    }
}

#[test]
fn times_have_units() {
    assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
    assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
    for bad in ["", "s", "0s", "99999999999999999999s", "-1s", "61m"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}
