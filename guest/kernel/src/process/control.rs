//! `prctl`

use super::{NAME_BYTES, set_name};
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// `prctl`: what a process says about itself and asks of a kernel that has nothing else to do.
pub fn control(operation: u64, argument: u64, rest: [u64; 3]) -> SysResult {
    const SET_PDEATHSIG: u64 = 1;
    const GET_PDEATHSIG: u64 = 2;
    const GET_DUMPABLE: u64 = 3;
    const SET_DUMPABLE: u64 = 4;
    const GET_KEEPCAPS: u64 = 7;
    const SET_KEEPCAPS: u64 = 8;
    const GET_TIMING: u64 = 13;
    const SET_TIMING: u64 = 14;
    const SET_NAME: u64 = 15;
    const GET_NAME: u64 = 16;
    const CAPBSET_READ: u64 = 23;
    const GET_TSC: u64 = 25;
    const SET_TSC: u64 = 26;
    const GET_SECUREBITS: u64 = 27;
    const SET_TIMERSLACK: u64 = 29;
    const GET_TIMERSLACK: u64 = 30;
    const MCE_KILL_GET: u64 = 34;
    const SET_CHILD_SUBREAPER: u64 = 36;
    const GET_CHILD_SUBREAPER: u64 = 37;
    const SET_NO_NEW_PRIVS: u64 = 38;
    const GET_NO_NEW_PRIVS: u64 = 39;
    const SET_THP_DISABLE: u64 = 41;
    const GET_THP_DISABLE: u64 = 42;
    const CAP_AMBIENT: u64 = 47;
    const SET_VMA: u64 = 0x5356_4d41;
    const TIMER_SLACK_NS: u64 = 50_000;
    const LAST_CAPABILITY: u64 = 40;
    const TSC_ENABLE: u64 = 1;
    let process = state::process();
    match operation as u32 as u64 {
        SET_PDEATHSIG if argument <= 64 => {
            // The parent never dies.
            process.death_signal = argument as u8;
            Ok(0)
        }
        GET_PDEATHSIG => {
            user::write(argument, u32::from(process.death_signal))?;
            Ok(0)
        }
        GET_DUMPABLE => Ok(u64::from(process.dumpable)),
        SET_DUMPABLE if argument <= 1 => {
            process.dumpable = argument == 1;
            Ok(0)
        }
        GET_KEEPCAPS => Ok(u64::from(process.keeps_capabilities)),
        SET_KEEPCAPS if argument <= 1 => {
            process.keeps_capabilities = argument == 1;
            Ok(0)
        }
        GET_TIMING => Ok(0),
        GET_SECUREBITS => Ok(u64::from(process.keeps_capabilities) << 4),
        SET_TIMING if argument == 0 => Ok(0),
        SET_NAME => {
            let given = user::text(argument, NAME_BYTES as u64 - 1)?;
            set_name(state::threads().current(), given);
            Ok(0)
        }
        GET_NAME => {
            user::write(argument, process.names[state::threads().current()])?;
            Ok(0)
        }
        CAPBSET_READ if argument <= LAST_CAPABILITY => Ok(0),
        GET_TSC => {
            user::write(argument, TSC_ENABLE as u32)?;
            Ok(0)
        }
        SET_TSC if argument == TSC_ENABLE => Ok(0),
        // As long as the usual one: nothing here is ever late for it.
        SET_TIMERSLACK => {
            process.timer_slack = match argument {
                0 | 0x8000_0000_0000_0000.. => TIMER_SLACK_NS,
                ns => ns,
            };
            Ok(0)
        }
        GET_TIMERSLACK => Ok(match process.timer_slack {
            0 => TIMER_SLACK_NS,
            ns => ns,
        }),
        MCE_KILL_GET if argument == 0 && rest == [0; 3] => Ok(2),
        SET_CHILD_SUBREAPER => {
            process.is_reaper = argument != 0;
            Ok(0)
        }
        GET_CHILD_SUBREAPER => {
            user::write(argument, u32::from(process.is_reaper))?;
            Ok(0)
        }
        SET_NO_NEW_PRIVS if argument == 1 && rest == [0; 3] => {
            process.no_new_privileges = true;
            Ok(0)
        }
        GET_NO_NEW_PRIVS if argument == 0 && rest == [0; 3] => {
            Ok(u64::from(process.no_new_privileges))
        }
        SET_THP_DISABLE if rest == [0; 3] => {
            process.no_huge_pages = argument != 0;
            Ok(0)
        }
        GET_THP_DISABLE if argument == 0 && rest == [0; 3] => Ok(u64::from(process.no_huge_pages)),
        // None is ever set.
        CAP_AMBIENT if argument == 1 && rest[0] <= LAST_CAPABILITY && rest[1..] == [0; 2] => Ok(0),
        CAP_AMBIENT if argument == 4 && rest == [0; 3] => Ok(0),
        // Names of mappings, which nothing here shows.
        SET_VMA if argument == 0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
