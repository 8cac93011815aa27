# `cargo xtask peers` fills in what is written in capitals.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .hello)],
  sockets = [(name = "http", address = "ADDRESS", http = (), service = "main")]
);

const hello :Workerd.Worker = (
  modules = [(
    name = "hello.js",
    esModule = "export default { fetch() { return new Response('hello from v1\\n'); } };"
  )],
  compatibilityDate = "2024-01-01",
);
