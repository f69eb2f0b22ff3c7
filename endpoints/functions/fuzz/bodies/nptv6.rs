//! Any frames through an NPTv6 translator.

use ferrule_daemon::settings::FileSettings as _;
use ferrule_functions::Function;
use ferrule_functions::config::{Config, FunctionSettings};
use ferrule_functions::nptv6::Nptv6;

use super::frames;

/// Has it translate all frames.
pub fn run(data: &[u8]) {
    let config = Config::from_bytes("seed".as_ref(), SETTINGS.as_bytes()).expect("they are good");
    let FunctionSettings::Nptv6(settings) = config.function else { panic!("it is an NPTv6 translator") };
    let macs = [settings.inside, settings.outside].map(|interface| interface.mac.0);
    let mut npt = Nptv6::new(settings);
    frames::each(data, |side, now_ms, mut frame| {
        // Most are for us.
        if let Some(to) = frame.first_chunk_mut::<6>()
            && to[0] == 2
        {
            *to = macs[side.index()];
        }
        let (length, mut out) = (frame.len(), Vec::new());
        npt.frame(side, &mut frame, now_ms, &mut out);
        assert_eq!(frame.len(), length);
        npt.tick(now_ms);
    });
}

const SETTINGS: &str = "
name: seed
client: { memif: { socket: \"@c\", role: client } }
network: { memif: { socket: \"@n\", role: client } }
nptv6:
  inside: { address: \"fdfd:fdfd:fdfd:fdfd::1/64\" }
  outside: { address: \"2001:db8::2/64\" }
  prefixes: { inside: \"fdfd:fdfd:fdfd::/48\", outside: \"fefe:fefe:fefe::/48\" }
  gateway: \"2001:db8::1\"
";
