/* Lua: a handler that is loaded at the start, behind the small server of the test guests. */
#include "../../guests/guest.h"

#include <lauxlib.h>
#include <lualib.h>

static const char handler[] =
    "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
    "local routes = {\n"
    "  ['/'] = function() return 'hello from Lua\\n' end,\n"
    "  ['/fib'] = function() return fib(20) .. '\\n' end,\n"
    "  ['/strings'] = function() local t = {} for i = 1, 500 do t[i] = ('%d'):format(i * i) end\n"
    "    table.sort(t) return table.concat(t, ','):sub(1, 40) .. '\\n' end,\n"
    "  ['/error'] = function() return tostring(pcall(error, 'x')) .. '\\n' end,\n"
    "  ['/coroutine'] = function() local s = 0 local co = coroutine.wrap(function() for i = 1, 100 do\n"
    "    coroutine.yield(i) end end) for _ = 1, 100 do s = s + co() end return s .. '\\n' end,\n"
    "}\n"
    "function handle(path) local route = routes[path] return route and route() or 'not found\\n' end\n";

static lua_State *lua;

static void handle(const struct request *request) {
    lua_getglobal(lua, "handle");
    lua_pushstring(lua, request->path);
    if (lua_pcall(lua, 1, 1, 0) != LUA_OK)
        answer(request, "failed: %s\n", lua_tostring(lua, -1));
    else
        answer(request, "%s", lua_tostring(lua, -1));
    lua_pop(lua, 1);
}

int main(void) {
    lua = luaL_newstate();
    luaL_openlibs(lua);
    if (luaL_dostring(lua, handler) != LUA_OK) {
        fprintf(stderr, "%s\n", lua_tostring(lua, -1));
        return 1;
    }
    serve(handle);
}
