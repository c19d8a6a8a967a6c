use super::*;

fn route(listen: &str, id: Option<u32>, auth: RequireAuth, steered: bool) -> Route {
    let listener = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
    Route { listen: listen.parse().unwrap(), id, auth, steered, listener }
}

fn numbered(routes: &[Route]) -> Routes {
    (0..).zip(routes.iter().cloned()).collect()
}

fn table(routes: &[Route], keys: bool) -> FunctionTable {
    FunctionTable::new(&numbered(routes), keys)
}

fn entry(function: u32, flags: u32) -> FunctionEntry {
    FunctionEntry { function, flags }
}

#[test]
fn a_function_alone_on_its_port_has_one_entry_without_flags() {
    let table = table(&[route("0.0.0.0:8081", None, RequireAuth::No, false)], false);
    assert_eq!(table.entries().collect::<Vec<_>>(), [(PortKey::any(8081), entry(0, 0))]);
}

#[test]
fn with_keys_every_port_reads_the_option() {
    let table = table(&[route("[::]:1", None, RequireAuth::Connect, false)], true);
    let flags = FUNCTION_OPTION | FUNCTION_AUTH_CONNECT;
    assert_eq!(table.entries().collect::<Vec<_>>(), [(PortKey::any(1), entry(0, flags))]);
}

#[test]
fn a_shared_port_has_a_default_and_an_entry_for_each_id() {
    let listen = "10.0.0.1:443";
    let routes = [
        route(listen, None, RequireAuth::No, false),
        route(listen, Some(7), RequireAuth::Wake, true),
        route("10.0.0.1:444", None, RequireAuth::No, false),
    ];
    let port = PortKey::listener(routes[0].listen);
    let other = PortKey::listener(routes[2].listen);
    let named = entry(1, FUNCTION_OPTION | FUNCTION_AUTH_WAKE);
    let table = table(&routes, false);
    assert_eq!(
        table.entries().collect::<Vec<_>>(),
        [
            (port, entry(0, FUNCTION_OPTION)),
            (port.with_id(7), named),
            (PortKey::id(7), named),
            (other, entry(2, 0)),
        ]
    );
    assert_eq!(super::named(&numbered(&routes)).map(|(number, _)| number).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_shared_port_without_a_default_is_nobodys() {
    let routes =
        [route("[::]:9", Some(1), RequireAuth::No, true), route("[::]:9", Some(2), RequireAuth::No, true)];
    let table = table(&routes, false);
    assert_eq!(table.without_default, [(PortKey::any(9), entry(0, FUNCTION_NONE | FUNCTION_OPTION))]);
    assert_eq!(table.entries().count(), 5);
}

#[test]
fn a_function_with_an_id_alone_on_its_port_is_its_default_too() {
    let table = table(&[route("[::]:9", Some(1), RequireAuth::No, false)], false);
    let keys: Vec<_> = table.entries().map(|(key, _)| key).collect();
    assert_eq!(keys, [PortKey::any(9), PortKey::any(9).with_id(1), PortKey::id(1)]);
    assert!(table.without_default.is_empty());
}

#[test]
fn the_port_map_has_exactly_the_bits_of_the_ports() {
    let ports = [1, 63, 64, 65_535];
    let routes = ports.map(|port| route(&format!("0.0.0.0:{port}"), None, RequireAuth::No, false));
    let words = table(&routes, false).port_words();
    for port in 0..=u16::MAX {
        let set = words[usize::from(port / 64)] >> (port % 64) & 1 == 1;
        assert_eq!(set, ports.contains(&port), "{port}");
    }
}
