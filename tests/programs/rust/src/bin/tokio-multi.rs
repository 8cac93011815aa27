//! axum on tokio's multi-thread runtime.

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() {
    holm_test_programs::app::serve().await;
}
