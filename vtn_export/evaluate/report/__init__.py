"""`vtn-export report`: one HTML file of everything that is known of a bundle, with charts; the same as PNG.

sources   what the page is made of: results given as JSON or measured here, each checked
strip     a sample video: thumbnails, and what the model says as more and more of it is seen
charts    how charts look; one function a chart in speed, accuracy and video
page      the HTML: sections, tables, everything from files escaped, a policy that lets nothing load
browser   the charts as PNG, by headless Chromium
"""
