//! A JavaScript handler in QuickJS, evaluated at the start: what the handler's module computes is there
//! before the first request.

use rquickjs::{Context, Function, Runtime};

const HANDLER: &str = r#"
const primes = [];
for (let n = 2; primes.length < 2000; n++)
    if (primes.every(p => p * p > n || n % p)) primes.push(n);
const routes = new Map([
    ["/", () => "hello from QuickJS\n"],
    ["/prime", () => primes[primes.length - 1] + "\n"],
    ["/json", () => JSON.stringify({ sorted: [3, 1, 2].sort(), text: "é".normalize("NFD").length }) + "\n"],
    ["/garbage", () => {
        let kept = 0;
        for (let i = 0; i < 20000; i++) kept += ({ i, text: "x".repeat(i % 50) }).text.length;
        return kept + "\n";
    }],
    ["/throw", () => { try { null.x } catch (error) { return error.name + "\n" } }],
]);
globalThis.handle = path => (routes.get(path) ?? (() => "not found\n"))();
"#;

fn main() {
    let runtime = Runtime::new().expect("the engine starts");
    let context = Context::full(&runtime).expect("the engine starts");
    context
        .with(|js| js.eval::<(), _>(HANDLER))
        .expect("the handler is valid");
    holm_test_programs::plain::serve(|path| {
        context.with(|js| {
            let handle: Function<'_> = js.globals().get("handle").expect("the handler is there");
            handle
                .call((path,))
                .unwrap_or_else(|error| format!("{error}\n"))
        })
    });
}
