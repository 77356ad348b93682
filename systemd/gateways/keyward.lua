-- Asks keyward http about a request, and responds itself if the request is not let through.
--
-- haproxy.md beside this file shows how HAProxy loads it.

local checker = os.getenv("KEYWARD_HTTP") or "unix@/run/keyward-http/haproxy.sock"

-- Headers of the request that the check needs: those with the key, and those of browsers.
local forwarded = { "authorization", "x-api-key", "origin", "access-control-request-method", "accept" }

-- Headers of a refusal that the client gets.
local passed_on = { "content-type", "www-authenticate", "retry-after", "ratelimit", "ratelimit-policy" }

-- Variables for the configuration, by the header that they come from.
local variables = {
    ["x-keyward-verdict"] = "txn.keyward_verdict",
    ["x-keyward-key-id"] = "txn.keyward_key_id",
    ["x-keyward-owner"] = "txn.keyward_owner",
    ["x-keyward-plan"] = "txn.keyward_plan",
    ["x-keyward-environment"] = "txn.keyward_environment",
    ["ratelimit"] = "txn.keyward_rate_limit",
    ["ratelimit-policy"] = "txn.keyward_rate_limit_policy",
}

local unavailable = '{"type":"about:blank","title":"Service Unavailable","status":503,'
    .. '"detail":"API keys cannot be checked at the moment.","code":"UNAVAILABLE"}'

local function client_address(txn)
    return txn.f:src()
end

-- All values of a header, as they were sent.
local function values(headers, name)
    local list = {}
    for index = 0, #(headers[name] or {}) do
        local value = headers[name] and headers[name][index]
        if value then
            list[#list + 1] = value
        end
    end
    return list
end

local function refuse(txn, status, headers, body)
    local reply = txn:reply({ status = status })
    for name, value in pairs(headers) do
        reply:add_header(name, value)
    end
    reply:set_body(body)
    txn:done(reply)
end

core.register_action("keyward", { "http-req" }, function(txn)
    local received = txn.http:req_get_headers()
    local headers = {
        ["x-forwarded-host"] = values(received, "host"),
        ["x-forwarded-method"] = { txn.f:method() },
        ["x-forwarded-uri"] = { txn.f:pathq() },
        ["x-forwarded-for"] = { client_address(txn) },
    }
    for _, name in ipairs(forwarded) do
        headers[name] = values(received, name)
    end
    local client = core.httpclient()
    -- The address of the URL is not used: `dst` is.
    local checked = client:get({ url = "http://127.0.0.1/", dst = checker, headers = headers, timeout = 1000 })
    if not checked or checked.status == 0 then
        return refuse(txn, 503, { ["content-type"] = "application/problem+json" }, unavailable)
    end
    for header, variable in pairs(variables) do
        local value = checked.headers[header]
        -- An empty value is set too: it overwrites what a client has forged.
        if value then
            txn:set_var(variable, value[0])
        end
    end
    if checked.status ~= 200 then
        local stated = {}
        for _, name in ipairs(passed_on) do
            stated[name] = checked.headers[name] and checked.headers[name][0]
        end
        return refuse(txn, checked.status, stated, checked.body or "")
    end
    -- If the action fails before this, HAProxy goes on, and the rule after it refuses the request.
    txn:set_var("txn.keyward_allowed", true)
end)
