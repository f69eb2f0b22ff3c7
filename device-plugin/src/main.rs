//! `device-plugin`: configuration, start, run, stop.

use std::process::ExitCode;

use device_plugin::config::ConfigFile;
use device_plugin::daemon::run;
use device_plugin::flags::Flags;
use ferrule_daemon::run::refuse_settings;

fn main() -> ExitCode {
    let flags = Flags::read();
    let file = match ConfigFile::load(&flags.config_file, flags.presets()) {
        Ok(file) => file,
        Err(error) => return refuse_settings(&error),
    };
    if flags.check {
        for warning in &file.config.warnings {
            println!("{}:{warning}", file.path.display());
        }
        let resources = file.config.resources.len();
        println!("{}: {resources} {}", file.path.display(), if resources == 1 { "resource" } else { "resources" });
        return ExitCode::SUCCESS;
    }
    let _log = match flags.log.start(env!("CARGO_CRATE_NAME")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    ferrule_daemon::run(|shutdown| run(flags.options(file), shutdown))
}
