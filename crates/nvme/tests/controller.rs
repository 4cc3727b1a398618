//! What a host sees of a controller: identify, logs, features, events, keep alive, reset and shutdown.

mod target;

use peristyle_nvme::registry::{ConnId, Ending, TargetEvent};
use peristyle_nvme::subsystem::{Health, IoCounters, LbaSize};
use peristyle_nvme::wire::identify::cns;
use peristyle_nvme::wire::log_page::{AnaState, lid};
use peristyle_nvme::wire::opcode::admin;
use peristyle_nvme::wire::property::offset;
use peristyle_nvme::wire::{Cid, Status, get_u16, get_u32, get_u64};
use target::*;

#[test]
fn a_host_finds_in_identify_what_it_refuses_to_work_without() {
    let mut t = Target::new();
    let c = t.ready();
    let id = t.data(c.controller, &identify_sqe(cns::CONTROLLER, 0));
    assert_eq!(&id[4..24], b"0123456789          ");
    assert_eq!(get_u16(&id, 78), c.cntlid);
    assert_eq!(get_u32(&id, 80), 0x0002_0000);
    assert_eq!((id[77], id[111]), (7, 1), "MDTS 512 KiB, an I/O controller");
    assert_eq!(get_u32(&id, 92), 1 << 8 | 1 << 11, "OAES");
    assert_ne!(get_u16(&id, 320), 0, "KAS");
    assert_eq!((id[512], id[513], get_u16(&id, 514)), (0x66, 0x44, 128));
    // Linux refuses MNAN 0 or above NN, and an ANA log larger than MDTS.
    assert_eq!((get_u32(&id, 516), get_u32(&id, 540)), (1024, 1024));
    assert!(get_u32(&id, 344) >= get_u32(&id, 348) && get_u32(&id, 348) > 0 && id[343] != 0 && id[342] > 0);
    assert_eq!(get_u16(&id, 520), 0b1001_1101, "ONCS");
    assert_eq!((get_u16(&id, 522), id[525]), (1, 0b110), "FUSES and VWC");
    assert_eq!((get_u16(&id, 526), get_u16(&id, 528), get_u16(&id, 532)), (127, 127, 127));
    assert_ne!(get_u32(&id, 536) & 3, 0, "SGLS");
    assert!(id[768..].starts_with(SUBSYSTEM.as_bytes()));
    assert_eq!((get_u32(&id, 1792), get_u32(&id, 1796), get_u16(&id, 1800)), ((64 + 8192) / 16, 1, 0));
}

#[test]
fn namespaces_are_described_alike_by_every_structure() {
    let mut t = Target::new();
    let c = t.ready().controller;
    for (nsid, shift, atomic, granule) in [(1, 12u8, 127, 0), (2, 9, 1023, 7)] {
        let id = t.data(c, &identify_sqe(cns::NAMESPACE, nsid));
        assert_eq!(
            (get_u64(&id, 0), get_u64(&id, 8), get_u64(&id, 16)),
            (1 << 30 >> shift, 1 << 30 >> shift, 5)
        );
        assert_eq!((get_u16(&id, 34), get_u16(&id, 36), get_u16(&id, 38)), (atomic, atomic, atomic));
        assert_eq!((get_u16(&id, 64), get_u16(&id, 66)), (granule, granule));
        assert_eq!((id[24] & 0b10, id[30], id[33], get_u32(&id, 92)), (0b10, 1, 0b1001, 1));
        assert_eq!(get_u32(&id, 128), u32::from(shift) << 16);
        assert_eq!(id[104..120], [nsid as u8; 16]);

        let descriptors = t.data(c, &identify_sqe(cns::NAMESPACE_DESCRIPTORS, nsid));
        let mut expected = vec![2, 16, 0, 0];
        expected.extend([nsid as u8; 16]);
        expected.extend([3, 16, 0, 0]);
        expected.extend([nsid as u8 | 0x40; 16]);
        expected.extend([4, 1, 0, 0, 0]);
        assert_eq!(descriptors[..expected.len()], expected);
        assert!(descriptors[expected.len()..].iter().all(|b| *b == 0));

        let independent = t.data(c, &identify_sqe(cns::NAMESPACE_INDEPENDENT, nsid));
        assert_eq!((independent[1], get_u32(&independent, 4), independent[14]), (1, 1, 1));
    }
    for list in [cns::ACTIVE_NAMESPACES, cns::IOCS_ACTIVE_NAMESPACES] {
        assert_eq!(t.data(c, &identify_sqe(list, 0))[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(t.data(c, &identify_sqe(list, 1))[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert!(t.data(c, &identify_sqe(cns::NAMESPACE, 3)).iter().all(|b| *b == 0), "inactive");
    assert_eq!(t.data(c, &identify_sqe_of(0xffff))[0], 1);
    assert_eq!(t.data(c, &identify_sqe(cns::IOCS_CONTROLLER, 0))[..4], [7, 0, 0, 0]);
}

#[test]
fn properties_tell_what_a_host_needs_to_enable() {
    let mut t = Target::new();
    let c = t.connect_admin().controller;
    let cap = t.property(c, offset::CAP, 8);
    assert_eq!((cap & 0xffff, cap >> 16 & 1, cap >> 24 & 0xff), (127, 1, 20));
    assert_eq!((cap >> 37 & 0xff, cap >> 59 & 3), (0b100_0001, 1));
    assert_eq!(t.property(c, offset::VS, 4), 0x0002_0000);
    assert_eq!(t.property(c, offset::CRTO, 4), 20);
    assert_eq!(t.property(c, offset::CSTS, 4), 0);
    let before = t.admin(c, &identify_sqe(cns::CONTROLLER, 0)).0;
    assert_eq!(before, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    t.set_cc(c, ENABLE);
    assert_eq!((t.property(c, offset::CSTS, 4), t.property(c, offset::CC, 4)), (1, u64::from(ENABLE)));
    t.set_cc(c, ENABLE | 1 << 14);
    assert_eq!(t.property(c, offset::CSTS, 4), 0b1001, "shutdown complete");
    t.set_cc(c, 0);
    assert_eq!(t.property(c, offset::CSTS, 4), 0);
    t.set_cc(c, ENABLE);
    assert_eq!(t.data(c, &identify_sqe(cns::CONTROLLER, 0)).len(), 4096);
}

#[test]
fn settings_that_cap_does_not_offer_are_refused_at_enable() {
    let mut t = Target::new();
    let c = t.connect_admin().controller;
    for cc in [ENABLE | 1 << 7, ENABLE | 1 << 11, ENABLE | 1 << 4, 1, 0x0056_0001, 0x0047_0001] {
        let (status, _) = t.admin(c, &property_sqe(true, offset::CC, 4, u64::from(cc)));
        assert_eq!(status, Status::INVALID_FIELD.with_dnr(), "{cc:x}");
        assert_eq!(t.property(c, offset::CSTS, 4), 0);
    }
    t.set_cc(c, ENABLE | 6 << 4);
}

#[test]
fn a_reset_closes_the_io_queues_and_forgets_the_features() {
    let mut t = Target::new();
    let c = t.ready();
    let first = t.connect_io(c.cntlid, 1).unwrap();
    t.enable_events(c.controller);
    t.listen(c.controller, 9);
    t.set_cc(c.controller, 0);
    assert_eq!(t.events(), [TargetEvent::Close { conn: ConnId(2), ending: Ending::Reset }]);
    t.set_cc(c.controller, ENABLE);
    assert_eq!(t.admin(c.controller, &get_feature_sqe(0x0b, 0)), (Status::SUCCESS, 0));
    t.connect_io(c.cntlid, 1).unwrap();
    // The closed queue's reactor reports late: its successor in the same place stays.
    t.registry.disconnected(&first);
    assert!(t.connect_io(c.cntlid, 1).is_err());
}

#[test]
fn an_event_is_told_once_until_its_log_page_is_read() {
    let mut t = Target::new();
    let c = t.ready().controller;
    t.enable_events(c);
    for cid in 10..14 {
        t.listen(c, cid);
    }
    t.registry.put_namespace(t.subsystem, namespace(7, LbaSize::B4096)).unwrap();
    t.registry.put_namespace(t.subsystem, namespace(5, LbaSize::B4096)).unwrap();
    let told =
        |cid, dw0| TargetEvent::CompleteAer { conn: ConnId(1), cid: Cid(cid), status: Status::SUCCESS, dw0 };
    assert_eq!(t.events(), [told(10, 0x04_0002)]);
    // Reading with RAE keeps both the list and the silence.
    let mut retain = log_sqe(lid::CHANGED_NAMESPACES, 4096, 0);
    retain.set_cdw(10, retain.cdw10() | 1 << 15);
    assert_eq!(t.data(c, &retain)[..12], [5, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    t.registry.remove_namespace(t.subsystem, 7).unwrap();
    assert_eq!(t.events(), []);
    assert_eq!(
        t.data(c, &log_sqe(lid::CHANGED_NAMESPACES, 4096, 0))[..12],
        [5, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
    );
    // What happened meanwhile is told now.
    assert_eq!(t.events(), [told(11, 0x04_0002)]);
    t.registry.set_ana_state(t.subsystem, 1, AnaState::Inaccessible).unwrap();
    assert_eq!(t.events(), [told(12, 0x0c_0302)]);
    // Utilization alone is nothing to tell; neither is a state that stays.
    let same = peristyle_nvme::subsystem::Namespace { lbas_used: 99, ..namespace(5, LbaSize::B4096) };
    t.data(c, &log_sqe(lid::CHANGED_NAMESPACES, 4, 0));
    t.registry.put_namespace(t.subsystem, same).unwrap();
    t.registry.set_ana_state(t.subsystem, 1, AnaState::Inaccessible).unwrap();
    assert_eq!(t.events(), []);
}

#[test]
fn an_association_may_reach_a_group_in_a_state_of_its_own_and_ends_alone() {
    let mut t = Target::new();
    let (one, other) = (t.ready(), t.ready());
    let states = |t: &mut Target, c: peristyle_nvme::registry::ControllerRef| {
        let log = t.data(c, &log_sqe(lid::ANA, 16 + 32 + 8, 0));
        (ana_states(&log)[0].1, get_u64(&log, 0))
    };
    assert_eq!(t.registry.associations_of(t.subsystem).count(), 0, "they have no I/O queues yet");
    let io = t.connect_io(one.cntlid, 1).unwrap();
    let seen: Vec<_> = t.registry.associations_of(t.subsystem).collect();
    assert_eq!((seen.len(), seen[0].controller, seen[0].host), (1, one.controller, HOSTID));
    assert_ne!(one.controller.number(), other.controller.number());
    t.registry.set_ana_state(t.subsystem, 1, AnaState::Inaccessible).unwrap();
    t.enable_events(one.controller);
    t.listen(one.controller, 9);
    let before = states(&mut t, one.controller);
    t.registry.set_association_state(one.controller, 1, Some(AnaState::NonOptimized));
    t.registry.set_association_state(one.controller, 1, Some(AnaState::NonOptimized));
    t.registry.set_association_state(one.controller, 99, Some(AnaState::NonOptimized));
    assert_eq!(t.events().len(), 1, "told once");
    assert_eq!(states(&mut t, one.controller), (2, before.1 + 1));
    assert_eq!(states(&mut t, other.controller), (3, before.1), "of others nothing is different");
    t.registry.set_association_state(one.controller, 1, None);
    assert_eq!(states(&mut t, one.controller), (3, before.1 + 2));
    t.registry.close_association(one.controller);
    t.registry.close_association(one.controller);
    let closed = [one.conn, io.conn].map(|conn| TargetEvent::Close { conn, ending: Ending::Withdrawn });
    assert_eq!(t.events(), closed);
    assert!(t.registry.controller(other.controller).is_some());
}

#[test]
fn a_namespace_of_another_size_is_told_and_has_it_from_then_on() {
    let mut t = Target::new();
    let c = t.ready().controller;
    t.enable_events(c);
    for (cid, lba_size, lbas) in
        [(1, LbaSize::B4096, 1 << 30), (2, LbaSize::B512, 2048), (3, LbaSize::B512, 8)]
    {
        let nsid = if lba_size == LbaSize::B4096 { 1 } else { 2 };
        t.listen(c, cid);
        let (uuid, nguid) = {
            let before = &t.data(c, &identify_sqe(cns::NAMESPACE_DESCRIPTORS, nsid));
            (before[..24].to_vec(), before[24..48].to_vec())
        };
        let resized = peristyle_nvme::subsystem::Namespace { lbas, ..namespace(nsid, lba_size) };
        t.registry.put_namespace(t.subsystem, resized).unwrap();
        let told = TargetEvent::CompleteAer {
            conn: ConnId(1),
            cid: Cid(cid),
            status: Status::SUCCESS,
            dw0: 0x04_0002,
        };
        assert_eq!(t.events(), [told]);
        assert_eq!(get_u32(&t.data(c, &log_sqe(lid::CHANGED_NAMESPACES, 4096, 0)), 0), nsid);
        let id = t.data(c, &identify_sqe(cns::NAMESPACE, nsid));
        assert_eq!((get_u64(&id, 0), get_u64(&id, 8)), (lbas, lbas), "NSZE and NCAP");
        assert!(get_u64(&id, 16) <= lbas, "NUSE");
        let after = &t.data(c, &identify_sqe(cns::NAMESPACE_DESCRIPTORS, nsid));
        assert_eq!((&after[..24], &after[24..48]), (&uuid[..], &nguid[..]), "it is the same one");
        assert_eq!(t.registry.namespace_table(t.subsystem).get(nsid).unwrap().lbas, lbas);
    }
}

#[test]
fn a_namespace_that_moves_to_another_group_is_an_ana_change() {
    let mut t = Target::new();
    let c = t.ready().controller;
    t.enable_events(c);
    t.listen(c, 1);
    t.listen(c, 2);
    let before = get_u64(&t.data(c, &log_sqe(lid::ANA, 16, 0)), 0);
    let moved = peristyle_nvme::subsystem::Namespace { ana_group: 4, ..namespace(2, LbaSize::B512) };
    t.registry.put_namespace(t.subsystem, moved).unwrap();
    let told =
        |cid, dw0| TargetEvent::CompleteAer { conn: ConnId(1), cid: Cid(cid), status: Status::SUCCESS, dw0 };
    assert_eq!(t.events(), [told(1, 0x04_0002), told(2, 0x0c_0302)]);
    let log = t.data(c, &log_sqe(lid::ANA, 128, 0));
    assert_eq!((get_u64(&log, 0), log[8], log[52], log[84]), (before + 2, 2, 4, 2));
}

#[test]
fn a_warning_is_told_when_it_appears_to_those_who_asked_for_it() {
    let mut t = Target::new();
    let c = t.ready().controller;
    assert_eq!(t.admin(c, &set_feature_sqe(0x0b, 0b101)).0, Status::SUCCESS);
    (1..5).for_each(|cid| t.listen(c, cid));
    let worse = Health { spare_percent: 5, temperature_kelvin: 350, ..Health::default() };
    t.registry.set_health(t.subsystem, worse);
    t.registry.set_health(t.subsystem, worse);
    let told =
        |cid, dw0| TargetEvent::CompleteAer { conn: ConnId(1), cid: Cid(cid), status: Status::SUCCESS, dw0 };
    assert_eq!(t.events(), [told(1, 0x02_0201)], "spare; nobody asked for temperature");
    t.registry.set_health(t.subsystem, Health { degraded: true, ..worse });
    assert_eq!(t.events(), [told(2, 0x02_0001)]);
    t.registry.set_health(t.subsystem, Health::default());
    t.registry.set_health(t.subsystem, worse);
    assert_eq!(t.events(), [], "the log page was not read");
    t.data(c, &log_sqe(lid::SMART, 512, 0));
    assert_eq!(t.events(), [told(3, 0x02_0201)]);
}

#[test]
fn a_registry_can_be_moved_to_its_home_reactor() {
    fn movable<T: Send + 'static>() {}
    movable::<peristyle_nvme::registry::Registry>();
    movable::<peristyle_nvme::subsystem::NamespaceTable>();
    movable::<TargetEvent>();
}

#[test]
fn hosts_that_did_not_ask_for_events_get_none() {
    let mut t = Target::new();
    let c = t.ready().controller;
    t.listen(c, 1);
    t.registry.remove_namespace(t.subsystem, 2).unwrap();
    t.registry.set_ana_state(t.subsystem, 1, AnaState::Change).unwrap();
    assert_eq!(t.events(), []);
}

#[test]
fn an_event_request_can_be_aborted() {
    let mut t = Target::new();
    let c = t.ready().controller;
    t.listen(c, 5);
    t.listen(c, 6);
    let mut abort = admin_sqe(admin::ABORT);
    abort.set_cdw(10, 5 << 16);
    assert_eq!(t.admin(c, &abort), (Status::SUCCESS, 0));
    let aborted =
        TargetEvent::CompleteAer { conn: ConnId(1), cid: Cid(5), status: Status::ABORT_REQUESTED, dw0: 0 };
    assert_eq!(t.events(), [aborted]);
    assert_eq!(t.admin(c, &abort), (Status::SUCCESS, 1), "it is gone");
}

#[test]
fn a_silent_host_loses_its_controller_and_all_its_queues() {
    let mut t = Target::new();
    let data = connect_data(0xffff, SUBSYSTEM, HOST);
    let c = t.connect(&connect_sqe(0, 32, 4_100), zerocopy::IntoBytes::as_bytes(&data)).unwrap();
    t.set_cc(c.controller, ENABLE);
    assert_eq!(t.admin(c.controller, &get_feature_sqe(0x0f, 0)), (Status::SUCCESS, 5_000), "rounded up");
    t.connect_io(c.cntlid, 3).unwrap();
    t.wait(4_999);
    assert_eq!(t.admin(c.controller, &admin_sqe(admin::KEEP_ALIVE)).0, Status::SUCCESS);
    t.wait(4_999);
    assert_eq!(t.events(), []);
    assert_eq!(t.registry.poll_timeout(), Some(t.now + peristyle_base::Duration::from_millis(1)));
    t.wait(1);
    let closed = |conn| TargetEvent::Close { conn: ConnId(conn), ending: Ending::Silence };
    assert_eq!(t.events(), [closed(1), closed(2)]);
    assert!(t.registry.controller(c.controller).is_none());
    assert_eq!(t.registry.poll_timeout(), None);
    t.registry.disconnected(&c);
    assert_eq!(t.admin(c.controller, &admin_sqe(admin::KEEP_ALIVE)).0, Status::ABORTED_SQ_DELETION);
}

#[test]
fn a_host_that_never_enables_its_controller_loses_it() {
    let mut t = Target::new();
    t.connect_admin();
    t.wait(119_999);
    assert_eq!(t.events(), []);
    t.wait(1);
    assert_eq!(t.events(), [TargetEvent::Close { conn: ConnId(1), ending: Ending::Silence }]);
}

#[test]
fn losing_the_admin_queue_ends_the_association() {
    let mut t = Target::new();
    let c = t.ready();
    let io = t.connect_io(c.cntlid, 1).unwrap();
    t.connect_io(c.cntlid, 2).unwrap();
    t.registry.disconnected(&io);
    assert_eq!(t.events(), []);
    t.registry.disconnected(&c);
    assert_eq!(t.events(), [TargetEvent::Close { conn: ConnId(3), ending: Ending::AdminQueueLost }]);
    assert!(t.registry.controller(c.controller).is_none());
}

#[test]
fn the_ana_log_groups_namespaces_and_counts_changes() {
    let mut t = Target::new();
    let c = t.ready().controller;
    let far = peristyle_nvme::subsystem::Namespace { ana_group: 9, ..namespace(3, LbaSize::B4096) };
    t.registry.put_namespace(t.subsystem, far).unwrap();
    t.registry.set_ana_state(t.subsystem, 9, AnaState::NonOptimized).unwrap();
    let mut expected = vec![0u8; 16 + 2 * 32 + 3 * 4];
    (expected[0], expected[8]) = (4, 2); // Three namespaces came, one state changed.
    (expected[16], expected[20], expected[24], expected[32]) = (1, 2, 2, 1);
    (expected[48], expected[52]) = (1, 2);
    (expected[56], expected[60], expected[64], expected[72], expected[88]) = (9, 1, 2, 2, 3);
    let log = t.data(c, &log_sqe(lid::ANA, 4096, 0));
    assert_eq!(log[..expected.len()], expected);
    assert!(log[expected.len()..].iter().all(|b| *b == 0));
    for offset in (0..expected.len() as u64).step_by(4) {
        let piece = t.data(c, &log_sqe(lid::ANA, 24, offset));
        let end = (offset as usize + 24).min(expected.len());
        assert_eq!(piece[..end - offset as usize], expected[offset as usize..end]);
    }
    let mut groups_only = log_sqe(lid::ANA, 80, 0);
    groups_only.set_cdw(10, groups_only.cdw10() | 1 << 8);
    let log = t.data(c, &groups_only);
    assert_eq!((log[16], log[20], log[48], log[52], log[64]), (1, 0, 9, 0, 2));
}

#[test]
fn smart_and_error_logs_tell_what_happened() {
    let mut t = Target::new();
    let c = t.ready().controller;
    let counted = IoCounters {
        reads: 3,
        writes: 2,
        bytes_read: 512_001,
        bytes_written: 4096,
        busy_ms: 120_000,
        media_errors: 1,
    };
    t.registry.add_counters(t.subsystem, &counted);
    t.registry.add_counters(t.subsystem, &counted);
    t.registry.set_health(t.subsystem, Health { spare_percent: 9, degraded: true, ..Health::default() });
    assert_eq!(t.admin(c, &identify_sqe(0x77, 0)).0, Status::INVALID_FIELD.with_dnr());
    assert_eq!(t.admin(c, &admin_sqe(0xc1)).0, Status::INVALID_OPCODE.with_dnr());
    let smart = t.data(c, &log_sqe(lid::SMART, 512, 0));
    assert_eq!((smart[0], get_u16(&smart, 1), smart[3], smart[4]), (0b101, 293, 9, 10));
    let wide = |at| get_u64(&smart, at);
    assert_eq!(
        [wide(32), wide(48), wide(64), wide(80), wide(96), wide(160), wide(176)],
        [3, 1, 6, 4, 4, 2, 2]
    );
    let errors = t.data(c, &log_sqe(lid::ERROR_INFORMATION, 4096, 0));
    assert_eq!((get_u64(&errors, 0), errors[31], get_u16(&errors, 12)), (2, 0xc1, (0x4001) << 1));
    assert_eq!((get_u64(&errors, 64), errors[64 + 31], get_u64(&errors, 128)), (1, admin::IDENTIFY, 0));
    for _ in 0..100 {
        t.admin(c, &admin_sqe(0xc1));
    }
    let errors = t.data(c, &log_sqe(lid::ERROR_INFORMATION, 4096, 0));
    assert_eq!((get_u64(&errors, 0), get_u64(&errors, 63 * 64)), (102, 39));
}

#[test]
fn what_is_supported_is_listed_and_what_is_listed_is_supported() {
    let mut t = Target::new();
    let c = t.ready().controller;
    let pages = t.data(c, &log_sqe(lid::SUPPORTED_LOG_PAGES, 1024, 0));
    for lid in 0..=255u8 {
        let listed = get_u32(&pages, usize::from(lid) * 4) & 1 != 0;
        assert_eq!(t.admin(c, &log_sqe(lid, 16, 0)).0.is_success(), listed, "log page {lid:02x}");
    }
    let effects = t.data(c, &log_sqe(lid::COMMAND_EFFECTS, 4096, 0));
    for opcode in (0..=255u8).filter(|o| *o != admin::ASYNC_EVENT_REQUEST && *o != 0x7f) {
        let listed = get_u32(&effects, usize::from(opcode) * 4) & 1 != 0;
        let unknown = t.admin(c, &admin_sqe(opcode)).0.is(Status::INVALID_OPCODE);
        assert_eq!(!unknown, listed, "admin opcode {opcode:02x}");
    }
    assert_eq!(get_u32(&effects, 1024 + 4) & 3, 3, "Write changes blocks");
    let features = t.data(c, &log_sqe(lid::FEATURE_EFFECTS, 1024, 0));
    for fid in 0..=255u8 {
        let listed = get_u32(&features, usize::from(fid) * 4) & 1 != 0;
        let mut get = get_feature_sqe(fid, 0);
        get.set_nsid(1);
        get.set_cdw(11, u32::from(fid == 0x81));
        assert_eq!(t.admin(c, &get).0.is_success(), listed, "feature {fid:02x}");
    }
}

#[test]
fn features_keep_current_default_and_capabilities_apart() {
    let mut t = Target::new();
    let c = t.ready().controller;
    let ok = |value| (Status::SUCCESS, value);
    assert_eq!(t.admin(c, &set_feature_sqe(0x04, 300)), ok(0));
    assert_eq!(t.admin(c, &get_feature_sqe(0x04, 0)), ok(300));
    assert_eq!(t.admin(c, &get_feature_sqe(0x04, 1)), ok(343));
    assert_eq!(t.admin(c, &get_feature_sqe(0x04, 2)), ok(343));
    assert_eq!(t.admin(c, &get_feature_sqe(0x04, 3)), ok(0b100), "changeable, not saveable");
    assert_eq!(t.admin(c, &get_feature_sqe(0x04, 5)).0, Status::INVALID_FIELD.with_dnr());
    assert_eq!(t.admin(c, &set_feature_sqe(0x07, 7 | 2 << 16)), ok(7 | 7 << 16));
    assert_eq!(t.admin(c, &set_feature_sqe(0x07, 200 | 200 << 16)), ok(63 | 63 << 16), "the limit");
    assert_eq!(t.admin(c, &set_feature_sqe(0x0f, 1)), ok(0));
    assert_eq!(t.admin(c, &get_feature_sqe(0x0f, 0)), ok(1000));
    let mut saved = set_feature_sqe(0x04, 1);
    saved.set_cdw(10, 0x04 | 1 << 31);
    assert_eq!(t.admin(c, &saved).0, Status::FEATURE_NOT_SAVEABLE.with_dnr());
    let mut of_namespace = set_feature_sqe(0x04, 1);
    of_namespace.set_nsid(1);
    assert_eq!(t.admin(c, &of_namespace).0, Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
    let mut recovery = set_feature_sqe(0x05, 1);
    recovery.set_nsid(1);
    assert_eq!(t.admin(c, &recovery).0, Status::FEATURE_NOT_CHANGEABLE.with_dnr());
    let mut id = get_feature_sqe(0x81, 0);
    assert_eq!(t.admin(c, &id).0, Status::INVALID_FIELD.with_dnr());
    id.set_cdw(11, 1);
    assert_eq!(t.data(c, &id), HOSTID);
    assert_eq!(t.admin(c, &set_feature_sqe(0x81, 1)).0, Status::COMMAND_SEQUENCE_ERROR.with_dnr());
}

#[test]
fn discovery_names_what_a_host_may_use_and_tells_of_changes() {
    let mut t = Target::new();
    let c = t.connect_discovery().controller;
    let id = t.data(c, &identify_sqe(cns::CONTROLLER, 0));
    assert_eq!((id[111], id[1806], get_u32(&id, 92)), (2, 1, 1 << 31));
    assert!(id[768..].starts_with(b"nqn.2014-08.org.nvmexpress.discovery\0"));
    assert_eq!(t.admin(c, &identify_sqe(cns::NAMESPACE, 1)).0, Status::INVALID_FIELD.with_dnr());
    let log = t.data(c, &log_sqe(lid::DISCOVERY, 2048, 0));
    let generation = get_u64(&log, 0);
    assert_eq!((get_u64(&log, 8), get_u16(&log, 16)), (1, 0));
    let entry = &log[1024..];
    assert_eq!((entry[0], entry[1], entry[2], get_u16(entry, 4), get_u16(entry, 6)), (3, 1, 2, 1, 0xffff));
    assert_eq!(get_u16(entry, 8), 32);
    assert!(entry[32..].starts_with(b"4420\0") && entry[512..].starts_with(b"192.0.2.1\0"));
    assert!(entry[256..].starts_with(SUBSYSTEM.as_bytes()));

    assert_eq!(t.admin(c, &set_feature_sqe(0x0b, 1 << 31)), (Status::SUCCESS, 0));
    t.listen(c, 3);
    let hosts = peristyle_nvme::subsystem::Hosts::Listed(vec![nqn(OTHER_HOST)]);
    t.registry.set_hosts(t.subsystem, hosts).unwrap();
    let told =
        TargetEvent::CompleteAer { conn: ConnId(1), cid: Cid(3), status: Status::SUCCESS, dw0: 0x70_f002 };
    assert_eq!(t.events(), [told]);
    let log = t.data(c, &log_sqe(lid::DISCOVERY, 1024, 0));
    assert_eq!((get_u64(&log, 0), get_u64(&log, 8)), (generation + 1, 0), "no longer this host's");
}

#[test]
fn hosts_struck_off_the_list_lose_their_connections() {
    let mut t = Target::new();
    let (mine, other) = (t.ready(), t.connect_admin_as(OTHER_HOST));
    t.connect_io(mine.cntlid, 1).unwrap();
    let hosts = peristyle_nvme::subsystem::Hosts::Listed(vec![nqn(OTHER_HOST)]);
    t.registry.set_hosts(t.subsystem, hosts).unwrap();
    let closed = |conn| TargetEvent::Close { conn: ConnId(conn), ending: Ending::Evicted };
    assert_eq!(t.events(), [closed(1), closed(3)]);
    assert!(t.registry.controller(other.controller).is_some());
    t.registry.remove_subsystem(t.subsystem).unwrap();
    assert_eq!(t.events(), [closed(2)]);
}

/// Identify of the command sets of controller `cntid`.
fn identify_sqe_of(cntid: u32) -> peristyle_nvme::Sqe {
    let mut sqe = identify_sqe(cns::COMMAND_SETS, 0);
    sqe.set_cdw(10, sqe.cdw10() | cntid << 16);
    sqe
}

/// As the Linux host takes an ANA log apart, with its own limits on each field.
fn ana_states(log: &[u8]) -> Vec<(u32, u8, Vec<u32>)> {
    let (mut groups, mut at) = (Vec::new(), 16);
    for _ in 0..get_u16(log, 8) {
        let (group, members, state) = (get_u32(log, at), get_u32(log, at + 4) as usize, log[at + 16]);
        assert!((1..=32).contains(&group) && (1..=4).contains(&state) || state == 15);
        let nsids: Vec<u32> = (0..members).map(|i| get_u32(log, at + 32 + 4 * i)).collect();
        assert!(nsids.is_sorted());
        groups.push((group, state, nsids));
        at += 32 + 4 * members;
    }
    groups
}

/// The order and the exact lengths of the Linux host: connect, enable, identify, effects, events, queues, scan.
#[test]
fn the_opening_moves_of_a_linux_host_all_succeed() {
    for wired in [None, Some(Digests(false)), Some(Digests(true))] {
        let mut t = Target::new();
        t.wired = wired;
        let data = connect_data(0xffff, SUBSYSTEM, HOST);
        let admin = t.connect(&connect_sqe(0, 32, 5_000), zerocopy::IntoBytes::as_bytes(&data)).unwrap();
        let c = admin.controller;
        t.property(c, offset::VS, 4);
        let cap = t.property(c, offset::CAP, 8);
        assert!(cap >> 48 & 0xf == 0 && cap >> 37 & 1 == 1, "4 KiB pages, the NVM command set");
        t.set_cc(c, 0x0046_0060);
        t.property(c, offset::CAP, 8);
        assert!(t.property(c, offset::CRTO, 4) & 0xffff >= cap >> 24 & 0xff);
        t.set_cc(c, 0x0046_0061);
        assert_eq!(t.property(c, offset::CSTS, 4) & 1, 1);

        let id = t.data(c, &identify_sqe(cns::CONTROLLER, 0));
        let (groups, namespaces) = (get_u32(&id, 348), get_u32(&id, 540));
        t.data(c, &identify_sqe(cns::IOCS_CONTROLLER, 0));
        t.data(c, &log_sqe(lid::COMMAND_EFFECTS, 4096, 0));
        let ana_bytes = 16 + groups * 32 + namespaces * 4;
        assert!(ana_bytes <= 4096 << id[77]);
        let log = t.data(c, &log_sqe(lid::ANA, ana_bytes, 0));
        assert_eq!(ana_states(&log), [(1, 1, vec![1, 2])]);

        assert_eq!(t.admin(c, &set_feature_sqe(0x07, 3 | 3 << 16)), (Status::SUCCESS, 3 | 3 << 16));
        for qid in 1..=4 {
            t.connect_io(admin.cntlid, qid).unwrap();
        }
        t.enable_events(c);
        t.listen(c, 31);
        t.data(c, &log_sqe(lid::CHANGED_NAMESPACES, 4096, 0));
        let list = t.data(c, &identify_sqe(cns::ACTIVE_NAMESPACES, 0));
        let nsids: Vec<u32> = list.chunks(4).map(|n| get_u32(n, 0)).take_while(|n| *n != 0).collect();
        assert_eq!(nsids, [1, 2]);
        for nsid in nsids {
            for page in
                [cns::NAMESPACE_DESCRIPTORS, cns::NAMESPACE, cns::NAMESPACE_INDEPENDENT, cns::IOCS_NAMESPACE]
            {
                t.data(c, &identify_sqe(page, nsid));
            }
        }
        t.wait(4_000);
        assert_eq!(t.admin(c, &admin_sqe(admin::KEEP_ALIVE)).0, Status::SUCCESS);
        t.wait(4_000);
        t.set_cc(c, 0x0046_4061);
        assert_eq!(t.property(c, offset::CSTS, 4) >> 2 & 3, 2);
        assert_eq!(t.events(), []);
    }
}

#[test]
fn hosts_are_listed_with_their_controllers_and_queues() {
    let mut t = Target::new();
    assert_eq!(t.registry.hosts(), []);
    t.connect_discovery(); // asks where to go, and uses nothing
    let first = t.ready();
    let second = t.ready();
    for qid in [1, 2] {
        t.connect_io(first.cntlid, qid).unwrap();
    }
    let queue = t.connect_io(second.cntlid, 1).unwrap();
    t.connect_admin_as(IO_HOST);
    let seen = |t: &Target| -> Vec<(String, u16, u16)> {
        let hosts = t.registry.hosts();
        hosts.iter().map(|h| (h.nqn.as_str().to_owned(), h.controllers, h.io_queues)).collect()
    };
    let mut expected = vec![(HOST.to_owned(), 2, 3), (IO_HOST.to_owned(), 1, 0)];
    expected.sort();
    assert_eq!(seen(&t), expected);
    t.registry.disconnected(&queue);
    t.registry.disconnected(&second);
    assert!(seen(&t).contains(&(HOST.to_owned(), 1, 2)));
}
