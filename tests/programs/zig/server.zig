// std.http.Server of Zig's standard library, one connection after the other.
const std = @import("std");

pub fn main() !void {
    const text = std.posix.getenv("PORT") orelse "8080";
    const port = try std.fmt.parseInt(u16, text, 10);
    const address = try std.net.Address.parseIp("0.0.0.0", port);
    var listener = try address.listen(.{ .reuse_address = true });
    defer listener.deinit();
    var general = std.heap.GeneralPurposeAllocator(.{}){};
    const allocator = general.allocator();
    while (true) {
        const connection = try listener.accept();
        defer connection.stream.close();
        var buffer: [8192]u8 = undefined;
        var server = std.http.Server.init(connection, &buffer);
        while (server.state == .ready) {
            var request = server.receiveHead() catch break;
            const body = try answer(allocator, request.head.target);
            defer allocator.free(body);
            request.respond(body, .{}) catch break;
        }
    }
}

fn answer(allocator: std.mem.Allocator, target: []const u8) ![]u8 {
    if (std.mem.eql(u8, target, "/map")) {
        var map = std.AutoHashMap(u32, u32).init(allocator);
        defer map.deinit();
        var n: u32 = 0;
        while (n < 5000) : (n += 1) try map.put(n % 977, n);
        return std.fmt.allocPrint(allocator, "{d} {d}\n", .{ map.count(), map.get(7).? });
    }
    if (std.mem.eql(u8, target, "/threads")) {
        var sum = std.atomic.Value(u32).init(0);
        var threads: [4]std.Thread = undefined;
        for (&threads) |*thread| thread.* = try std.Thread.spawn(.{}, add, .{&sum});
        for (threads) |thread| thread.join();
        return std.fmt.allocPrint(allocator, "{d}\n", .{sum.load(.seq_cst)});
    }
    return std.fmt.allocPrint(allocator, "hello from Zig {s}\n", .{target});
}

fn add(sum: *std.atomic.Value(u32)) void {
    var n: u32 = 0;
    while (n < 1000) : (n += 1) _ = sum.fetchAdd(1, .seq_cst);
}
