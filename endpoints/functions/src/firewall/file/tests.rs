use super::super::rule::{Action, Rule};
use super::*;

fn good(text: &str) -> Policy {
    read_text("rules.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is wrong with it, in one line each.
fn wrong(text: &str) -> Vec<String> {
    match read_text("rules.yaml", text) {
        Ok(policy) => panic!("nothing is wrong: {policy:?}"),
        Err(errors) => errors.lines().collect(),
    }
}

/// That this text, alone, is wrong in this way.
fn refused(text: &str, place: &str, problem: &str) {
    let lines = wrong(text);
    assert!(lines.len() == 1 && lines[0].contains(place) && lines[0].contains(problem), "{text}: {lines:#?}");
}

mod ours {
    use super::*;

    #[test]
    fn rules_keep_their_order_and_their_sides() {
        let policy = good(
            "rules:\n  - { name: b, action: deny, from: either, source: 10.0.0.0/8 }\n  - { name: a, action: reflect, protocol: tcp, \
             source_ports: 1024-65535, ports: 80, tcp_flags: \"syn,!ack\" }\n  - { name: c, action: permit, from: network, protocol: 47 }\n",
        );
        let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(
            (names, policy.unmatched, policy.not_ip),
            (vec!["b", "a", "c"], [Unmatched::Deny; 2], Unmatched::Deny)
        );
        let sides: Vec<_> =
            policy.rules.iter().map(|rule| rule.matches.clone().map(|matched| matched.is_some())).collect();
        assert_eq!(sides, [[true, true], [true, false], [false, true]]);
        let [Some(web), None] = &policy.rules[1].matches else { panic!("from the client only") };
        let expected = Match {
            protocol: Some(TCP),
            source_ports: 1024..=u16::MAX,
            destination_ports: 80..=80,
            tcp_mask: 0x12,
            tcp_value: 0x02,
            ..Match::ANY
        };
        assert_eq!((web, policy.rules[1].action), (&expected, Action::Reflect));
        assert!(web.is_for(Family::V4) && web.is_for(Family::V6), "without a prefix, it is for both");
    }

    #[test]
    fn every_doubt_is_an_error_at_its_place_with_a_cure() {
        let rule = |keys: &str| format!("rules: [{{ name: r, action: permit, {keys} }}]");
        for (keys, place, problem) in [
            ("ports: 80", "rules[0].ports", "add `protocol: tcp`"),
            ("protocol: icmp, ports: 80", "rules[0].ports", "only TCP and UDP"),
            ("protocol: tcp, icmp_type: 8", "rules[0].icmp_type", "add `protocol: icmp`"),
            ("protocol: tcp, ports: 90-80", "rules[0].ports", "write 80-90"),
            ("protocol: tcp, ports: 70000", "rules[0].ports", "a number up to 65535"),
            ("protocol: icmp, icmp_type: 300", "rules[0].icmp_type", "up to 255"),
            ("protocol: tpc", "rules[0].protocol", "`tcp`"),
            ("source: 10.0.0.1/8", "rules[0].source", "write 10.0.0.0/8 or 10.0.0.1"),
            ("source: 10.0.0.0/33", "rules[0].source", "a prefix such as"),
            ("source: 10.0.0.0/8, destination: \"fd00::/8\"", "rules[0]", "different families"),
            ("protocol: icmpv6, source: 10.0.0.0/8", "rules[0]", "ICMPv6 is IPv6"),
            ("protocol: udp, tcp_flags: syn", "rules[0].tcp_flags", "add `protocol: tcp`"),
            ("protocol: tcp, tcp_flags: sin", "rules[0].tcp_flags", "of fin, syn"),
            ("protocl: tcp", "rules[0].protocl", "did you mean `protocol`?"),
            ("from: server", "rules[0].from", "`client`"),
        ] {
            refused(&rule(keys), place, problem);
        }
        refused(
            "rules: [{ name: r, action: reflect, protocol: icmp, icmp_type: 3 }]",
            "rules[0].action",
            "write `permit`",
        );
        refused(
            "rules: [{ name: r, action: deny }, { name: r, action: deny }]",
            "rules[1].name",
            "give this one another",
        );
        refused("rules: [{ action: deny }]", "rules[0].name", "missing");
        refused("rules: [{ name: r }]", "rules[0].action", "missing");
    }

    #[test]
    fn a_file_that_says_nothing_is_no_firewall() {
        refused("", "rules.yaml:1:1", "write `rules: []`");
        assert_eq!(good("rules: []"), DENY_ALL);
        refused("rules: [", "rules.yaml:", "not YAML");
        refused("rules: []\nrule: []", "rule", "did you mean `rules`?");
    }

    #[test]
    fn rules_are_not_endless() {
        let rules: Vec<_> = (0..=RULES_MAX).map(|number| format!("  - {{ name: r{number}, action: deny }}")).collect();
        refused(&format!("rules:\n{}\n", rules.join("\n")), "rules", "at most 4096");
    }
}

mod acl_map {
    use super::*;

    /// Of nse-composition, as it is.
    const FILE: &str = "
allow icmp: {ispermit: 1, proto: 1, srcportoricmptypelast: 65535, dstportoricmpcodelast: 65535}
allow tcp8080: {ispermit: 1, proto: 6, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 8080,
  dstportoricmpcodelast: 8080}
forbid tcp80: {proto: 6, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 80, dstportoricmpcodelast: 80}
";

    #[test]
    fn the_file_of_nse_composition_means_what_it_means_there() {
        let policy = good(FILE);
        let actions: Vec<_> = policy.rules.iter().map(|rule| (rule.name.as_str(), rule.action)).collect();
        let expected =
            [("allow icmp", Action::Permit), ("allow tcp8080", Action::Permit), ("forbid tcp80", Action::Deny)];
        assert_eq!(actions, expected, "in the order of the file");
        let Rule { matches: [Some(there), Some(back)], .. } = &policy.rules[1] else { panic!("both directions") };
        assert_eq!((&there.source_ports, &there.destination_ports), (&(0..=u16::MAX), &(8080..=8080)));
        assert_eq!((&back.source_ports, &back.destination_ports), (&(8080..=8080), &(0..=u16::MAX)));
        assert!(there.is_for(Family::V4) && !there.is_for(Family::V6), "no prefix is IPv4 only");
        assert_eq!((policy.unmatched, policy.not_ip), ([Unmatched::Deny; 2], Unmatched::Permit));
    }

    #[test]
    fn icmp_has_no_direction() {
        let policy = good(
            "p: {ispermit: 2, proto: 1, srcportoricmptypefirst: 8, srcportoricmptypelast: 8, dstportoricmpcodelast: 0}",
        );
        let Rule { action: Action::Reflect, matches: [Some(there), Some(back)], .. } = &policy.rules[0] else {
            panic!("{policy:?}")
        };
        assert_eq!((&there.source_ports, &back.source_ports), (&(8..=8), &(8..=8)));
        assert_eq!((&there.destination_ports, &back.destination_ports), (&(0..=0), &(0..=0)));
    }

    #[test]
    fn a_rule_for_ipv6_names_both_prefixes() {
        let policy = good("six: {ispermit: 1, srcprefix: \"::/0\", dstprefix: \"fd00::1/64\"}");
        let Rule { matches: [Some(there), Some(back)], .. } = &policy.rules[0] else { panic!("{policy:?}") };
        assert!(there.is_for(Family::V6) && !there.is_for(Family::V4));
        assert_eq!((back.source, back.destination), (there.destination, there.source));
        assert_eq!(there.destination.map(|net| net.to_string()).as_deref(), Some("fd00::/64"));
        refused("six: {ispermit: 1, srcprefix: \"::/0\"}", "six", "for IPv6 give both");
        refused(
            "six: {ispermit: 1, proto: 58, srcportoricmptypelast: 65535, dstportoricmpcodelast: 65535}",
            "six",
            "for IPv6 give both",
        );
    }

    #[test]
    fn every_doubt_is_an_error_at_its_place_with_a_cure() {
        refused("r: {proto: 6, dstportoricmpcodelast: 65535}", "r.srcportoricmptypelast", "write 65535 for any");
        refused("r: {srcportoricmptypelast: 65535}", "r.srcportoricmptypelast", "ports need `proto: 6`");
        refused(
            "r: {proto: 17, srcportoricmptypelast: 65535, dstportoricmpcodefirst: 9, dstportoricmpcodelast: 8}",
            "r.dstportoricmpcodelast",
            "swap them",
        );
        refused("r: {ispermit: 3}", "r.ispermit", "`2`");
        refused("r: {is_ipv6: 1}", "r.is_ipv6", "unknown key");
        refused("r: {srcprefix: 10.0.0.0}", "r.srcprefix", "a prefix such as");
        refused("r: {tcpflagsmask: 2}", "r.tcpflagsmask", "add `proto: 6`");
        refused("r: {}\nr: {}", "r", "give this one another");
        refused("[1, 2]", "rules.yaml:1:1", "a mapping");
    }
}

mod one_line_map {
    use super::*;

    #[test]
    fn the_rules_of_secure_intranet_mean_what_they_mean_there() {
        let policy = good(
            "aclRules: {\"Allow ICMP\": \"action=reflect,icmptype=8\", \"Allow TCP 80\": \"action=reflect,tcplowport=80,tcpupport=80\"}",
        );
        assert_eq!(policy.unmatched, [Unmatched::Deny, Unmatched::Permit], "what the network sends passes");
        let [ping, web] = &policy.rules[..] else { panic!("{policy:?}") };
        assert_eq!((ping.name.as_str(), ping.action), ("Allow ICMP", Action::Reflect));
        let [Some(ping), None] = &ping.matches else { panic!("from the client only") };
        assert_eq!(
            (ping.protocol, &ping.source_ports, &ping.destination_ports),
            (Some(ICMP), &(8..=8), &(0..=u16::MAX))
        );
        let [Some(web), None] = &web.matches else { panic!("from the client only") };
        assert_eq!((web.protocol, &web.destination_ports, web.is_for(Family::V6)), (Some(TCP), &(80..=80), false));
    }

    #[test]
    fn blanks_and_letters_do_not_count() {
        let rule = |text: &str| good(&format!("aclRules: {{ r: \"{text}\" }}")).rules.remove(0);
        let spaced = rule(" Action = REFLECT , UDPLowPort = 53 , udpupport= 60 ");
        assert_eq!(spaced, rule("action=reflect,udplowport=53,udpupport=60"));
        let six = rule("action=deny,srcnet=fd00::1/8,dstnet=::/0");
        assert!(
            six.matches[0].as_ref().is_some_and(|matched| matched.is_for(Family::V6) && !matched.is_for(Family::V4))
        );
    }

    #[test]
    fn every_doubt_is_an_error_at_its_place_with_a_cure() {
        for (text, problem) in [
            ("icmptype=8", "add action=deny"),
            ("action=allow", "deny, permit or reflect"),
            ("action=permit,tcplowport=80", "tcplowport without tcpupport; add tcpupport"),
            ("action=permit,udpupport=80", "udpupport without udplowport"),
            ("action=permit,tcplowport=90,tcpupport=80", "swap them"),
            ("action=permit,tcplowport=x,tcpupport=80", "a number up to 65535"),
            ("action=permit,icmptype=256", "a number up to 255"),
            ("action=permit,srcnet=10.0.0.0/8", "add dstnet=0.0.0.0/0"),
            ("action=permit,srcnet=10.0.0.0/40,dstnet=0.0.0.0/0", "srcnet=`10.0.0.0/40`; a prefix"),
            ("action=permit,srcnet=10.0.0.0/8,dstnet=::/0", "different families"),
            ("action=permit,tcplowprot=80", "did you mean `tcplowport`?"),
            ("action=permit,proto=6", "unknown key `proto`"),
            ("action=permit,,", "no key=value"),
            ("action=permit,action=deny", "given twice"),
            ("action=permit,icmptype=8,tcplowport=1,tcpupport=2", "write two rules"),
        ] {
            let lines = wrong(&format!("aclRules: {{ \"a rule\": \"{text}\" }}"));
            assert!(
                lines.iter().any(|line| line.contains("aclRules.a rule: ") && line.contains(problem)),
                "{text}: {lines:#?}"
            );
        }
        refused("aclRules: {}", "aclRules", "everything would pass");
    }
}
