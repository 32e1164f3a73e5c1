// The search runs in a Worker, which browsers do not start from files. There a hidden frame takes its place: it is given
// the worker's script and its messages. Opened from a server, the site keeps the browser's own Worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      this.waiting = []
      inside.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      // within a worker scripts are fetched and run at once; here one after the other, in the order in which they are asked for
      inside.importScripts = (...scripts) => scripts.reduce(
        (before, script) => before.then(() => run(inside, new URL(script, address))), Promise.resolve())
      run(inside, address).then(() => {
        this.inside = inside
        this.waiting.forEach(data => this.postMessage(data))
      })
      this.frame = frame
    }
    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
    terminate() { this.frame.remove() }
  }
  const run = (inside, address) => new Promise((done, failed) => {
    const script = inside.document.createElement("script")
    script.src = address
    script.onload = done
    script.onerror = () => failed(new Error(`cannot load ${address}`))
    inside.document.body.appendChild(script)
  })
}
