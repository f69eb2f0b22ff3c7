//! `device-plugin`: configuration, start, run, stop.

use std::fs;
use std::process::ExitCode;

use device_plugin::config::{Checked, Config, ConfigFile};
use device_plugin::daemon::run;
use device_plugin::flags::Flags;
use ferrule_daemon::counted;
use ferrule_daemon::run::{EX_USAGE, refuse_settings};
use ferrule_daemon::settings::{LoadError, decode};

fn main() -> ExitCode {
    let flags = Flags::read();
    if flags.check {
        return check(&flags).unwrap_or_else(|error| refuse_settings(&error));
    }
    let file = match ConfigFile::load(&flags.config_file, flags.presets()) {
        Ok(file) => file,
        Err(error) => return refuse_settings(&error),
    };
    let _log = match flags.log.start(env!("CARGO_CRATE_NAME")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    ferrule_daemon::run(|shutdown| run(flags.options(file), shutdown))
}

/// Says what is wrong with the configuration, and what is left of it.
fn check(flags: &Flags) -> Result<ExitCode, LoadError> {
    let path = flags.config_file.display();
    let read = |source| LoadError::Read { what: Config::FILE, path: flags.config_file.clone(), source };
    let contents = fs::read(&flags.config_file).map_err(read)?;
    let text = decode(&flags.config_file, &contents)?;
    let Checked { warnings, config } = Config::check(&path.to_string(), text, flags.presets());
    for warning in &warnings {
        println!("warning: {path}:{warning}");
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            for line in errors.lines() {
                eprintln!("error: {line}");
            }
            return Ok(ExitCode::from(EX_USAGE));
        }
    };
    let (used, left_out) = (config.resources.len(), config.left_out.len());
    if left_out == 0 {
        println!("{path}: {}", counted(used, "resource"));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{path}: {left_out} of {} left out: {}", counted(used + left_out, "resource"), config.left_out.join(", "));
    Ok(ExitCode::from(EX_DATAERR))
}

/// The exit code for a configuration of which a resource is left out, from `sysexits.h`.
const EX_DATAERR: u8 = 65;
