// A conversation by mqtt.js: node exchange.mjs URL VERSION [CA]. Prints what came, one JSON document.
import { readFileSync } from "node:fs";
import mqtt from "mqtt";

const [url, version, ca] = process.argv.slice(2);
const protocolVersion = Number(version);
const v5 = protocolVersion === 5;
const options = { protocolVersion, reconnectPeriod: 0, clean: true, ...(ca && { ca: readFileSync(ca) }) };

const wait = (emitter, event) => new Promise((resolve) => emitter.once(event, (...all) => resolve(all)));
const heard = [];

const subscriber = await mqtt.connectAsync(url, { ...options, clientId: `js-${version}-subscriber` });
const all = new Promise((resolve) => {
  subscriber.on("message", (topic, payload, packet) => {
    const { qos, retain, properties = {} } = packet;
    heard.push({ topic, payload: payload.toString(), qos, retain, user: properties.userProperties ?? null });
    if (topic === `js/${version}/will`) resolve();
  });
});
const publisher = await mqtt.connectAsync(url, {
  ...options,
  clientId: `js-${version}-publisher`,
  will: { topic: `js/${version}/will`, payload: "gone", qos: 1, retain: false },
});
await publisher.publishAsync(`js/${version}/kept`, "kept", { qos: 1, retain: true });
const granted = await subscriber.subscribeAsync(`js/${version}/#`, { qos: 2 });
for (const qos of [0, 1, 2]) {
  const properties = v5 ? { userProperties: { k: `v${qos}` } } : undefined;
  await publisher.publishAsync(`js/${version}/${qos}`, `at ${qos}`, { qos, properties });
}
// Without DISCONNECT, so that its will is published.
const closed = wait(publisher, "close");
publisher.stream.destroy();
await closed;
await all;
await subscriber.unsubscribeAsync(`js/${version}/#`);
await subscriber.endAsync();
console.log(JSON.stringify({ granted: granted.map((each) => each.qos), heard }));
