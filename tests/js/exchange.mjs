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
// What was published, beside the will: a message of QoS 2 is heard at its PUBREL, which a will might overtake.
let published, all;
const first = new Promise((resolve) => { published = resolve; });
const last = new Promise((resolve) => { all = resolve; });
subscriber.on("message", (topic, payload, packet) => {
  const { qos, retain, properties = {} } = packet;
  heard.push({ topic, payload: payload.toString(), qos, retain, user: properties.userProperties ?? null });
  if (heard.length === 4) published();
  if (topic === `js/${version}/will`) all();
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
await first;
// Without DISCONNECT, so that its will is published.
const closed = wait(publisher, "close");
publisher.stream.destroy();
await closed;
await last;
await subscriber.unsubscribeAsync(`js/${version}/#`);
await subscriber.endAsync();
console.log(JSON.stringify({ granted: granted.map((each) => each.qos), heard }));
