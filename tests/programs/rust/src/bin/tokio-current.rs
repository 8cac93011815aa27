//! axum on tokio's current-thread runtime.

#[tokio::main(flavor = "current_thread")]
async fn main() {
    holm_test_programs::app::serve().await;
}
