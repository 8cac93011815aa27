//! Single system calls and what belongs together with them: what a guest tells is what the same program tells on
//! the host.

mod common;

use common::tells_the_same;
use holm_test_support::require_kvm;

#[test]
fn kvm_close_on_exec_is_kept_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("close_on_exec", &[("/", "third copy: 1")]);
}
