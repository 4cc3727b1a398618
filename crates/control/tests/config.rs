//! The configuration: the sample says what the code does, and mistakes are named.

use peristyle_base::{GIB, MIB};
use peristyle_control::config::*;

const SAMPLE: &str = include_str!("../../../deploy/peristyle.toml");

const DEVICES: &str = r#"
[[device]]
path = "/dev/a"
[[device]]
path = "/dev/b"
[[device]]
path = "/dev/c"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(&format!("{text}{DEVICES}")).map_err(|e| e.to_string())
}

#[test]
fn the_sample_is_the_defaults_and_names_every_key() {
    let config = Config::parse(&format!("{SAMPLE}{DEVICES}")).unwrap();
    let defaults = Config { devices: config.devices.clone(), ..Config::default() };
    assert_eq!(config, defaults);
    // Uncommented, the optional keys are known too.
    let key = |l: &&str| {
        l.split_once(" = ").is_some_and(|(k, _)| k.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'))
    };
    let all: String = SAMPLE
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|l| key(l) || l.starts_with('[')).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let config = Config::parse(&format!("{all}{DEVICES}")).unwrap();
    assert!(config.nvme.advertise.is_some() && config.nvme.nqn.is_some());
    assert_eq!((config.devices.len(), config.devices[0].domain), (4, Some(1)));
    let cluster = config.cluster.unwrap();
    assert_eq!((cluster.node, cluster.rack, cluster.zone), (1, Some("r1".into()), Some("a".into())));
}

#[test]
fn the_sample_documents_every_key_of_the_structs() {
    let keys = "data_dir admin_socket shards listen advertise nqn hosts count cores poll buffers hugepages map_cache \
                name scheme too_few_domains detect_zeroes checkpoint_log background_mib_s \
                rebuild_after_s scrub_days path write_cache discard domain lba_bytes connections queue_depth io_queues token node tls rack zone";
    for key in keys.split_whitespace() {
        assert!(SAMPLE.contains(&format!("{key} = ")), "{key}");
    }
}

#[test]
fn unknown_keys_are_errors_with_their_line() {
    for text in ["[node]\ndata_dri = \"/x\"", "[nodes]", "top = 1", "[[device]]\npath = \"/d\"\nsize = 3"] {
        let error = parse(text).unwrap_err();
        assert!(error.contains("unknown field") && error.contains("line "), "{error}");
    }
}

#[test]
fn an_error_in_the_line_of_a_token_does_not_show_its_secret() {
    let secret = "5a".repeat(32);
    for (key, value) in [
        ("token", format!("main@etcd:10.0.0.1:2379#1234.{secret}")),
        ("tokne", format!("main@etcd:10.0.0.1:2379#00112233-4455-6677-8899-aabbccddeeff.{secret}")),
        ("token", format!("main@etcd:10.0.0.1:2379#00112233-4455-6677-8899-aabbccddeeff.{secret}\\x")),
    ] {
        let error = parse(&format!("[cluster]\n{key} = \"{value}\"\nnode = 1")).unwrap_err();
        assert!(error.contains("line 2") && error.contains("main@etcd"), "{error}");
        assert!(!error.contains("5a5a5a5a5a5a5a"), "{error}");
    }
}

#[test]
fn values_are_what_was_written() {
    let config = parse(
        "[nvme]\nlisten = [\"0.0.0.0:4420\", \"[::1]:4421\"]\nadvertise = \"10.0.0.1:4420\"\n\
         hosts = [\"nqn.2014-08.org.nvmexpress:uuid:a\"]\n\
         [nbd]\nlisten = [\"unix:/run/nbd.sock\", \"127.0.0.1:10809\"]\n\
         [memory]\nbuffers = 67108864\nmap_cache = \"1.5GiB\"\nhugepages = \"require\"\n\
         [reactors]\ncount = 2\ncores = [2, 3]\npoll = \"busy\"\n[pool]\nscheme = \"2+1\"\n",
    )
    .unwrap();
    assert_eq!((config.memory.buffers, config.memory.map_cache), (Bytes(64 * MIB), Bytes(3 * GIB / 2)));
    assert_eq!((config.reactors.poll, config.memory.hugepages), (Poll::Busy, HugePages::Require));
    assert_eq!(config.nbd.listen[0], ListenAddr::Unix("/run/nbd.sock".into()));
    assert_eq!(config.nbd.listen[0].to_string(), "unix:/run/nbd.sock");
    assert!(config.nvme.hosts.allows("nqn.2014-08.org.nvmexpress:uuid:a"));
    assert!(!config.nvme.hosts.allows("nqn.2014-08.org.nvmexpress:uuid:b") && Hosts::Any.allows(""));
    assert_eq!(config.pool.scheme.to_string(), "2+1");
}

#[test]
fn what_is_out_of_range_or_contradicts_itself_is_named_with_its_key() {
    for (text, key) in [
        ("[node]\ndata_dir = \"here\"", "node.data_dir"),
        ("[node]\nshards = 0", "node.shards"),
        ("[node]\nshards = 65", "node.shards"),
        ("[nvme]\nlisten = []", "nvme.listen"),
        ("[nvme]\nlisten = [\"1.1.1.1:1\", \"1.1.1.1:1\"]", "nvme.listen"),
        ("[nvme]\nadvertise = \"0.0.0.0:4420\"", "nvme.advertise"),
        ("[nvme]\nnqn = \"mine\"", "nvme.nqn"),
        ("[nvme]\nhosts = []", "nvme.hosts"),
        ("[nvme]\nhosts = [\"x\"]", "nvme.hosts"),
        ("[nbd]\nlisten = [\"127.0.0.1:4420\"]", "nbd.listen"),
        ("[reactors]\ncount = 257", "reactors.count"),
        ("[reactors]\ncores = [1, 1]", "reactors.cores"),
        ("[memory]\nbuffers = \"31MiB\"", "memory.buffers"),
        ("[memory]\nmap_cache = \"2TiB\"", "memory.map_cache"),
        ("[pool]\ncheckpoint_log = \"1MiB\"", "pool.checkpoint_log"),
        ("[limits]\nconnections = 1", "limits.connections"),
        ("[limits]\nqueue_depth = 4096", "limits.queue_depth"),
        ("[limits]\nio_queues = 0", "limits.io_queues"),
        ("[volumes]\nlba_bytes = 1024", "volumes.lba_bytes"),
        ("[pool]\nname = \"a b\"", "pool.name"),
        ("[[device]]\npath = \"dev\"", "device.path"),
        ("[[device]]\npath = \"/dev/a\"", "device.path"),
        ("[pool]\nscheme = \"4+3\"", "device: 3 failure domains"),
        ("[[device]]\npath = \"/d\"\ndomain = 1\nwrite_cache = \"maybe\"", "unknown variant `maybe`"),
        ("[pool]\nscheme = \"17+1\"", "17+1"),
        ("[pool]\ntoo_few_domains = \"panic\"", "panic"),
        ("[nvme]\nhosts = \"all\"", "neither \"any\" nor a list"),
        ("[memory]\nbuffers = \"lots\"", "not a size"),
        ("[nbd]\nlisten = [\"unix:relative\"]", "starts with /"),
        ("[nbd]\nlisten = [\"localhost\"]", "IP:PORT"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
    assert!(Config::parse("").unwrap_err().to_string().contains("device format"));
}

#[test]
fn nodes_on_a_network_speak_tls_unless_they_are_told_not_to() {
    let (uuid, secret) = ("00112233-4455-6677-8899-aabbccddeeff", format!(".{}", "5a".repeat(32)));
    let of = |listen: &str, secret: &str, more: &str| {
        parse(&format!(
            "[cluster]\ntoken = \"main@etcd:10.0.0.1:2379#{uuid}{secret}\"\nnode = 1\nlisten = \"{listen}:7400\"\n{more}"
        ))
    };
    let use_of = |listen, secret, more| of(listen, secret, more).map(|c| c.cluster.unwrap().peer_tls());
    for (listen, told, tls) in [
        ("10.0.0.2", "", PeerTls::On),
        ("127.0.0.1", "", PeerTls::Off),
        ("127.0.0.1", "tls = \"on\"", PeerTls::On),
        ("10.0.0.2", "tls = \"off\"", PeerTls::Off),
        ("10.0.0.2", "tls = \"optional\"", PeerTls::Optional),
    ] {
        assert_eq!(use_of(listen, &secret, told), Ok(tls), "{listen} {told}");
        let without = use_of(listen, "", told);
        match tls {
            PeerTls::Off => assert_eq!(without, Ok(tls)),
            _ => assert!(without.unwrap_err().contains("--new-secret"), "{listen} {told}"),
        }
    }
    let warns =
        |told| of("10.0.0.2", &secret, told).unwrap().warnings().iter().any(|w| w.contains("cluster.tls"));
    assert_eq!(["", "tls = \"off\"", "tls = \"optional\""].map(warns), [false, true, true]);
}

#[test]
fn devices_of_one_domain_count_once() {
    let shared = "[pool]\nscheme = \"1+1\"\n[[device]]\npath = \"/x\"\ndomain = 1\n[[device]]\npath = \"/y\"\ndomain = 1\n";
    assert_eq!(parse(shared).unwrap().domains(), 4);
    assert!(Config::parse(shared).unwrap_err().to_string().contains("1 failure domains"));
    let goes_on = shared.replace("\"1+1\"", "\"1+1\"\ntoo_few_domains = \"continue\"");
    assert!(Config::parse(&goes_on).is_ok());
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warnings = parse("[nvme]\nlisten = [\"0.0.0.0:4420\"]").unwrap().warnings();
    for word in ["pool.scheme 4+2 needs 6", "nvme.hosts", "nvme.advertise"] {
        assert!(warnings.iter().any(|w| w.contains(word)), "{word}: {warnings:?}");
    }
    assert_eq!(parse("[pool]\nscheme = \"2+1\"").unwrap().warnings(), [""; 0]);
}
